"""The clients as users write them."""
