"""QueryAudit of this service's own audit log, which nobody else can read.

Belongs here: from a request to messages. Does not belong here: reading files (common/auditread.py).
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Final

from common import auditread
from proto.joblet.v1 import node_pb2 as pb

SOURCE: Final = "persist"


class AuditQueries:
    """Answers from the files in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def messages(self, request: pb.QueryAuditRequest) -> AsyncGenerator[pb.QueryAuditResponse, None]:
        """The answers of one query. Raises JobletError and OSError."""
        wanted = auditread.wanted_of(
            start_time=request.start_time,
            end_time=request.end_time,
            who=request.who,
            method=request.method,
            object_=request.object,
            outcome=request.outcome,
            tail=request.tail,
        )
        reading = auditread.read(self._directory, wanted, tail=request.tail, follow=request.follow)
        async with aclosing(reading) as parts:
            async for part in parts:
                yield response_of(part)


def response_of(part: auditread.Part) -> pb.QueryAuditResponse:
    """One message."""
    return pb.QueryAuditResponse(entries=map(_entry, part.entries), unreadable=part.unreadable)


def _entry(entry: auditread.Entry) -> pb.AuditEntry:
    return pb.AuditEntry(
        timestamp=auditread.time_ns_of(entry),
        who=entry.who,
        serial=entry.serial,
        roles=entry.roles,
        scheme=entry.scheme,
        method=entry.method,
        object=entry.object,
        peer=entry.peer,
        outcome=entry.outcome,
        why=entry.why or entry.rule,
        number=entry.number,
        source=SOURCE,
    )
