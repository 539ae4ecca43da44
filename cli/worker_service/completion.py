"""`worker-service completion`: the script that teaches a shell to complete its commands and options."""

import click

from cli.front.completion import SHELLS, script
from cli.worker_service.commands import Verb


@click.command(
    "completion",
    cls=Verb,
    example='eval "$(worker-service completion bash)"   # in ~/.bashrc; zsh likewise\n'
    "worker-service completion fish > ~/.config/fish/completions/worker-service.fish",
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL."""
    click.echo(script(context, shell))
