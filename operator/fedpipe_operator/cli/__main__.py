"""`python -m fedpipe_operator.cli` is `fedpipe`."""

from fedpipe_operator.cli import main

main()
