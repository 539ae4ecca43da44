"""The script that teaches a shell to complete a program's commands and options.

Here: click's scripts. Not here: what completes to what; click takes that from the commands themselves.
"""

from typing import Final

import click
from click.shell_completion import ShellComplete, get_completion_class

SHELLS: Final = ("bash", "zsh", "fish")


def script(context: click.Context, shell: str) -> str:
    """The script of `shell`, one of SHELLS, for the program that `context` belongs to."""
    root = context.find_root()
    kind = get_completion_class(shell)
    assert root.info_name is not None
    assert kind is not None
    variable = complete_variable(root.info_name)
    # Not kind.source(): for bash that runs bash first to look at its version, which need not be installed here.
    return ShellComplete.source(kind(root.command, {}, root.info_name, variable))


def complete_variable(program: str) -> str:
    """The variable of the environment by which a shell asks `program` what to complete."""
    return f"_{program.upper().replace('-', '_')}_COMPLETE"
