"""The node's audit log, asked of NodeService: entries as they come, each once, over broken connections.

Here: the query and how a follower goes on. Not here: output (`cli/rnx/audit.py`), the format (docs/operations.md).
"""

from collections.abc import Callable, Iterator
from typing import Final

from cli.client.patience import RESUME_WINDOW_S, Patience
from cli.client.session import Session
from common.errors import JobletError, unavailable
from proto.joblet.v1 import node_pb2

RESUMED_ENTRIES_MAX: Final = 10_000
"""Looked through for the place where a follower was broken off: the most that the node gives as a tail."""


def query_audit(
    session: Session,
    request: node_pb2.QueryAuditRequest,
    *,
    passed_over: Callable[[int], None],
    patience: Patience | None = None,
) -> Iterator[node_pb2.AuditEntry]:
    """Entries as the request says, until the caller closes the iterator. Raises JobletError.

    `passed_over` is told of lines that the node could not read. A follower that has got something is taken up again
    when the connection breaks: with the newest entries, of which those that it has are left out by their number.
    """
    patience = patience or Patience(RESUME_WINDOW_S)
    last, resumed = 0, False
    while True:
        try:
            for answer in _answers(session, request):
                patience.progress()
                if answer.unreadable and not resumed:
                    passed_over(answer.unreadable)
                for entry in answer.entries:
                    if entry.number > last:
                        last = entry.number
                        yield entry
            if not request.follow:
                return
            raise unavailable("the node ended the stream of the audit log", "ask again")
        except JobletError as error:
            if not (request.follow and last):
                raise
            patience.bear(error)
            request.tail, resumed = RESUMED_ENTRIES_MAX, True


def _answers(session: Session, request: node_pb2.QueryAuditRequest) -> Iterator[node_pb2.QueryAuditResponse]:
    with session.translated():
        call = session.nodes.QueryAudit(request, timeout=session.remaining_s())
        try:
            yield from call
        finally:
            session.cancel(call)
