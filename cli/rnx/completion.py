"""`rnx completion`: the script that teaches a shell to complete rnx's commands and options.

Here: printing click's scripts. Not here: what completes to what; click takes that from the commands themselves.
"""

from typing import Final

import click
from click.shell_completion import ShellComplete, get_completion_class

from cli.rnx.commands import Room, Verb

COMPLETE_VARIABLE: Final = "_RNX_COMPLETE"
SHELLS: Final = ("bash", "zsh", "fish")


@click.command(
    "completion",
    cls=Verb,
    example='eval "$(rnx completion bash)"            # in ~/.bashrc; zsh likewise\n'
    "rnx completion fish > ~/.config/fish/completions/rnx.fish",
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL."""
    root = context.find_root().command
    kind = get_completion_class(shell)
    assert isinstance(root, Room)
    assert kind is not None
    # Not kind.source(): for bash that runs bash first to look at its version, which need not be installed here.
    click.echo(ShellComplete.source(kind(root, {}, "rnx", COMPLETE_VARIABLE)))
