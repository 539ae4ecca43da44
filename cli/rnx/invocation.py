"""The global options of one invocation, and what every command needs from them.

Here: --config, --node, --json, --timeout wherever they stand on the line, and the session that they describe. Not
here: options of single commands.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.client.contexts import Context, load_context
from cli.client.escape import escape_line

if TYPE_CHECKING:
    from cli.client.session import Session

DEFAULT_NODE = "default"


class Invocation:
    """What the global options said. Filled while the line is parsed: later options win over earlier ones."""

    def __init__(self) -> None:
        self.config: Path | None = None
        self.node = DEFAULT_NODE
        self.json = False
        self.timeout_ms: int | None = None

    def context(self) -> Context:
        """The chosen context; prints its warnings. Raises JobletError."""
        context = load_context(self.config, self.node)
        for warning in context.warnings:
            warn(warning)
        return context

    @contextmanager
    def session(self) -> "Iterator[Session]":
        """A conversation with the chosen node."""
        from cli.client.session import Session  # noqa: PLC0415  # imports grpc, which parsing and --help do not need

        timeout_s = None if self.timeout_ms is None else self.timeout_ms / 1000
        with Session(self.context(), timeout_s=timeout_s) as session:
            yield session


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def warn(text: str) -> None:
    """One line on stderr that is no error."""
    tell(f"rnx: {text}")


def tell(line: str) -> None:
    """`line` on stderr, escaped; nothing when stderr is gone."""
    try:
        sys.stderr.write(f"{escape_line(line)}\n")
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):
        return  # nobody reads: there is no better place to say so
