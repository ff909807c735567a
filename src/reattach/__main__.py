"""``python -m reattach``: the command line."""

from reattach.cli import main

main()
