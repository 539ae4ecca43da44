"""`python -m cli.rnx` is rnx. Process entry only."""

from cli.rnx.main import main

main()
