"""The classes that commands of jobc are made of, and its connection.

Here: which options all commands of jobc take. Not here: any command.
"""

import click

from cli.front import commands
from cli.front.commands import connection_options
from cli.front.connection import Connection

PROGRAM = "jobc"


class JobcConnection(Connection):
    """What the options of one invocation say about its connection."""

    def __init__(self) -> None:
        super().__init__(PROGRAM)


pass_connection = click.make_pass_decorator(JobcConnection, ensure=True)


def _options() -> tuple[click.Option, ...]:
    return connection_options(JobcConnection)


class Verb(commands.Verb):
    """A command of jobc."""

    common_options = staticmethod(_options)


class Room(commands.Room):
    """All commands of jobc."""

    common_options = staticmethod(_options)
