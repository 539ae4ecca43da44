"""`rnx completion`: the script that teaches a shell to complete rnx's commands and options."""

import click

from cli.front.completion import SHELLS, script
from cli.rnx.commands import Verb


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
    click.echo(script(context, shell))
