"""Following runs: cursors into shared bytes, and the readers behind them."""
