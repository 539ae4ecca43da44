"""Which node a command speaks to, as whom, and for how long: the options that every program takes.

Here: the session that they describe. Not here: parsing them (each program has a style of its own), reading the
configuration (`cli/client/contexts.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cli.client.contexts import Context, load_context
from cli.front.output import tell

if TYPE_CHECKING:
    from cli.client.session import Session

DEFAULT_NODE = "default"


class Connection:
    """What the options of `program` said about its connection. `timeout_ms` None: nothing bounds it as a whole."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.config: Path | None = None
        self.node = DEFAULT_NODE
        self.timeout_ms: int | None = None

    def context(self) -> Context:
        """The chosen context; prints its warnings. Raises JobletError."""
        context = load_context(self.config, self.node)
        for warning in context.warnings:
            tell(f"{self.program}: {warning}")
        return context

    @contextmanager
    def session(self) -> "Iterator[Session]":
        """A conversation with the chosen node."""
        from cli.client.session import Session  # noqa: PLC0415  # imports grpc, which parsing and --help do not need

        timeout_s = None if self.timeout_ms is None else self.timeout_ms / 1000
        with Session(self.context(), timeout_s=timeout_s) as session:
            yield session
