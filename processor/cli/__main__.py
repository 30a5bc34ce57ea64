"""`python -m processor.cli` is `dropbatch`."""

from processor.cli import main

main()
