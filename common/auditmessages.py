"""QueryAudit in its messages, for both services that have an audit log: a request is understood, entries are told.

Not here: reading files (`auditread.py`), and gRPC itself, which common does not import.
"""

from common import auditread
from proto.joblet.v1 import node_pb2


def wanted_of(request: node_pb2.QueryAuditRequest) -> auditread.Wanted:
    """Which entries are asked for. Raises JobletError(INVALID)."""
    return auditread.wanted_of(
        start_time=request.start_time,
        end_time=request.end_time,
        who=request.who,
        method=request.method,
        object_=request.object,
        outcome=request.outcome,
        tail=request.tail,
    )


def response_of(part: auditread.Part, source: str) -> node_pb2.QueryAuditResponse:
    """One message, of the service `source`."""
    return node_pb2.QueryAuditResponse(
        entries=[_entry(entry, source) for entry in part.entries], unreadable=part.unreadable
    )


def _entry(entry: auditread.Entry, source: str) -> node_pb2.AuditEntry:
    return node_pb2.AuditEntry(
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
        source=source,
    )
