"""The classes that commands of rnx are made of: those of every program, with the global options of rnx.

Here: which options all commands of rnx take. Not here: any command.
"""

import click

from cli.front import commands
from cli.front.commands import connection_options, kept_option
from cli.rnx.invocation import Invocation


def global_options() -> tuple[click.Option, ...]:
    """Fresh options that write into the invocation instead of reaching the command."""
    config, node, timeout = connection_options(Invocation)
    json = kept_option(
        ["--json"], "json", Invocation, is_flag=True, default=None, help="Machine output with stable keys."
    )
    return config, node, json, timeout


class Verb(commands.Verb):
    """A command with an example in its help and the global options among its own."""

    common_options = staticmethod(global_options)


class Room(commands.Room):
    """A group of commands, each named by `module:attribute` and imported when it is used."""

    common_options = staticmethod(global_options)
