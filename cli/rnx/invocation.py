"""The global options of one invocation of rnx, and what every command needs from them.

Here: --json beside what the other programs take, too (`cli/front/connection.py`), wherever they stand on the line. Not
here: options of single commands.
"""

import click

from cli.front.connection import Connection


class Invocation(Connection):
    """What the global options said. Filled while the line is parsed: later options win over earlier ones."""

    def __init__(self) -> None:
        super().__init__("rnx")
        self.json = False


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)
