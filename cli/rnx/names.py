"""What a shell proposes for names that a node knows: asked for at once, and nothing when the node does not answer.

Here: volumes. Not here: commands and options, which click proposes by itself.
"""

import io
from contextlib import redirect_stderr
from typing import Final

import click
from click.shell_completion import CompletionItem

from cli.rnx.invocation import Invocation
from common.errors import JobletError

_PATIENCE_MS: Final = 2000
_NAMES_MAX: Final = 1000


def volume_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The caller's volumes whose names begin so, on the node that the line names."""
    del parameter
    from cli.client.volumes import list_volumes  # noqa: PLC0415  # imports grpc, which other completions do not need

    invocation = context.ensure_object(Invocation)
    invocation.timeout_ms = _PATIENCE_MS
    try:
        # Whoever completes a line sees it being typed: a warning would stand in its middle.
        with redirect_stderr(io.StringIO()), invocation.session() as session:
            names = [volume.name for volume in list_volumes(session, limit=_NAMES_MAX)]
    except (JobletError, click.ClickException):
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
