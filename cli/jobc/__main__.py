"""`python -m cli.jobc` is jobc. Process entry only."""

from cli.jobc.main import main

main()
