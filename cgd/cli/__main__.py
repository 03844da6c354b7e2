"""`python -m cgd.cli` is `cgd`."""

from cgd.cli import main

main()
