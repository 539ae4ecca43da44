"""QueryAudit of this service's own audit log, which nobody else can read.

Belongs here: from a request to messages. Does not belong here: reading files (common/auditread.py).
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Final

from common import auditread
from common.auditmessages import response_of, wanted_of
from proto.joblet.v1 import node_pb2 as pb

SOURCE: Final = "persist"


class AuditQueries:
    """Answers from the files in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def messages(self, request: pb.QueryAuditRequest) -> AsyncGenerator[pb.QueryAuditResponse, None]:
        """The answers of one query. Raises JobletError and OSError."""
        reading = auditread.read(self._directory, wanted_of(request), tail=request.tail, follow=request.follow)
        async with aclosing(reading) as parts:
            async for part in parts:
                yield response_of(part, SOURCE)
