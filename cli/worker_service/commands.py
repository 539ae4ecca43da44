"""The classes that commands of worker-service are made of, and its connection.

Here: which options all commands take, and how they are written: as Go's package flag takes them, with one dash or two.
Not here: any command.
"""

from typing import Any

import click

from cli.front import commands
from cli.front.commands import connection_options
from cli.front.connection import Connection

PROGRAM = "worker-service"
DASHES = ("-", "--")
HELP = {"help_option_names": [f"{dash}help" for dash in DASHES]}
"""No -h: among single-dash options a letter alone would be looked for in every word that begins with a dash."""


class WorkerConnection(Connection):
    """What the options of one invocation say about its connection."""

    def __init__(self) -> None:
        super().__init__(PROGRAM)


pass_connection = click.make_pass_decorator(WorkerConnection, ensure=True)


def _options() -> tuple[click.Option, ...]:
    return connection_options(WorkerConnection, DASHES)


def flags(name: str) -> tuple[str, ...]:
    """The spellings of an option, and the name of its parameter."""
    return (*(f"{dash}{name}" for dash in DASHES), name.replace("-", "_"))


class Verb(commands.Verb):
    """A command of worker-service."""

    common_options = staticmethod(_options)

    def __init__(self, *args: Any, context_settings: dict[str, Any] | None = None, **attributes: Any) -> None:
        super().__init__(*args, context_settings=HELP | (context_settings or {}), **attributes)


class Room(commands.Room):
    """All commands of worker-service."""

    common_options = staticmethod(_options)

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, context_settings=HELP, **attributes)
