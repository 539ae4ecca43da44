"""`jobc completion`: the script that teaches a shell to complete jobc's commands and options."""

import click

from cli.front.completion import SHELLS, script
from cli.jobc.commands import Verb


@click.command(
    "completion",
    cls=Verb,
    example='eval "$(jobc completion bash)"           # in ~/.bashrc; zsh likewise\n'
    "jobc completion fish > ~/.config/fish/completions/jobc.fish",
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL."""
    click.echo(script(context, shell))
