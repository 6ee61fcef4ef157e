"""`python -m kitae` is the command `kitae`."""

from kitae.cli import main

main()
