"""QueryAudit: the audit log for those who manage the node.

Belongs here: from a request to messages, for this service's own lines; those of persist come from persist, which alone
can read them. Does not belong here: who may ask (`gate.py`), reading files (common/auditread.py).
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Final

import structlog

from common import auditread
from common.auditmessages import response_of, wanted_of
from common.errors import invalid, unavailable
from proto.joblet.v1 import node_pb2
from services.api.history import UNTAKEN_S_MAX, History

log = structlog.get_logger(__name__)

SOURCE: Final = "api"


class AuditQueries:
    """Answers from the files in `directory`, or from persist."""

    def __init__(self, directory: Path, history: History, *, poll_s: float = auditread.POLL_S) -> None:
        self._directory = directory
        self._history = history
        self._poll_s = poll_s

    def open(self, request: node_pb2.QueryAuditRequest) -> AsyncGenerator[bytes | node_pb2.QueryAuditResponse, None]:
        """The messages of one query. Raises JobletError."""
        wanted = wanted_of(request)
        match request.source:
            case "" | "api":
                return self._own(wanted, request)
            case "persist":
                return self._history.raw("QueryAudit", request, untaken_s=UNTAKEN_S_MAX)
            case other:
                raise invalid(f"source: no such one {other[:40]!r}", "use api or persist")

    async def _own(
        self, wanted: auditread.Wanted, request: node_pb2.QueryAuditRequest
    ) -> AsyncGenerator[bytes | node_pb2.QueryAuditResponse, None]:
        try:
            reading = auditread.read(
                self._directory, wanted, tail=request.tail, follow=request.follow, poll_s=self._poll_s
            )
            async with aclosing(reading) as parts:
                async for part in parts:
                    yield response_of(part, SOURCE)
        except OSError as cause:
            log.error("the audit log cannot be read", why=str(cause))
            raise unavailable("the audit log cannot be read now", "see the log of the api service") from cause
