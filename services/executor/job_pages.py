"""Pages of jobs, newest first, in bounded time whatever the filter and however many jobs there are.

A page walks one index in order and looks at `ROWS_PER_PAGE_MAX` rows at most. A filter that matches few of them gives
a short page, even an empty one, and a token to go on from: only an empty token says that there is no more.
"""

import base64
import binascii
import heapq
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from common.errors import JobletError, invalid
from common.identifiers import JobId, parse_job_id
from common.messages.jobs import ListJobs, State
from services.executor.events import Job
from services.executor.job_store import JobStore

PAGE_SIZE_MAX: Final = 1000
PAGE_SIZE_DEFAULT: Final = 100
ROWS_PER_PAGE_MAX: Final = 2000
PAGE_BYTES_MAX: Final = 2 * 2**20
"""A page ends behind the job that reaches it: it must fit into one message of gRPC (4 MiB by default)."""
LABELS_MAX: Final = 64

Position = tuple[int, str]
"""created_at_ns and id: the order of pages, descending."""

_TOKEN: Final = struct.Struct(">q36s")
_NEWEST: Final[Position] = (2**63 - 1, "~")


class JobsPage(NamedTuple):
    """Jobs, newest first, and where to go on; empty: nowhere."""

    jobs: tuple[Job, ...]
    next_page_token: str


def page(store: JobStore, request: ListJobs) -> JobsPage:
    """The page that `request` asks for. Raises INVALID for a token that this module did not make."""
    size = min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
    if size < 1:
        raise invalid(f"page size {request.page_size} is negative", f"use 1 to {PAGE_SIZE_MAX}; 0 is the default")
    owner = _owner(request)
    if owner is None and (request.owner or request.visible_owner is not None):
        return JobsPage((), "")
    before = _parse_token(request.page_token) if request.page_token else _NEWEST
    found: list[Job] = []
    looked_at, found_bytes, last = 0, 0, before
    for position in _walk(store, request, owner, before):
        if len(found) == size or looked_at == ROWS_PER_PAGE_MAX or found_bytes >= PAGE_BYTES_MAX:
            return JobsPage(tuple(found), _token(last))
        looked_at, last = looked_at + 1, position
        match = _matching(store, position, request, owner)
        if match is not None:
            found.append(match[0])
            found_bytes += match[1]
    return JobsPage(tuple(found), "")


def _owner(request: ListJobs) -> str | None:
    """Whose jobs only; None: everyone's, or nobody's when the two wishes exclude each other."""
    wishes = {owner for owner in (request.visible_owner, request.owner or None) if owner is not None}
    return wishes.pop() if len(wishes) == 1 else None


def _walk(store: JobStore, request: ListJobs, owner: str | None, before: Position) -> Iterator[Position]:
    """Positions in order, from the index that excludes most."""
    if request.states:
        walks = [_by_state(store, state, owner, before) for state in sorted(set(request.states))]
        return heapq.merge(*walks, reverse=True)
    if request.labels:
        return _by_label(store, next(iter(request.labels.items())), owner, before)
    where, arguments = ("owner=? AND", (owner,)) if owner is not None else ("", ())
    return _positions(store, "jobs", where, arguments, before)


def _by_state(store: JobStore, state: State, owner: str | None, before: Position) -> Iterator[Position]:
    if owner is None:
        return _positions(store, "jobs", "state=? AND", (state.value,), before)
    return _positions(store, "jobs", "owner=? AND state=? AND", (owner, state.value), before)


def _by_label(store: JobStore, label: tuple[str, str], owner: str | None, before: Position) -> Iterator[Position]:
    if owner is None:
        return _positions(store, "labels", "name=? AND value=? AND", label, before)
    return _positions(store, "labels", "owner=? AND name=? AND value=? AND", (owner, *label), before)


def _positions(
    store: JobStore, table: str, where: str, arguments: tuple[str, ...], before: Position
) -> Iterator[Position]:
    rows = store.connection.execute(
        f"SELECT created_at_ns, id FROM {table} WHERE {where} (created_at_ns, id) < (?, ?)"  # noqa: S608  # our words
        f" ORDER BY created_at_ns DESC, id DESC LIMIT {ROWS_PER_PAGE_MAX + 1}",
        (*arguments, *before),
    )
    return ((int(created_at_ns), str(job)) for created_at_ns, job in rows)


def _matching(store: JobStore, position: Position, request: ListJobs, owner: str | None) -> tuple[Job, int] | None:
    """The job and its bytes, if it is one of those asked for. A row is decoded only when its labels match."""
    if not all(store.has_label(position, label) for label in request.labels.items()):
        return None
    row = store.row(position[1])
    if row is None or (request.states and row[3] not in request.states) or (owner is not None and row[2] != owner):
        return None
    stored = store.decoded(row)
    if stored is None or not request.labels.items() <= stored.record.spec.labels.items():
        return None
    return stored, len(row[5])


def _token(position: Position) -> str:
    return base64.urlsafe_b64encode(_TOKEN.pack(position[0], position[1].encode())).decode().rstrip("=")


def _parse_token(text: str) -> Position:
    padding = "=" * (-len(text) % 4)
    try:
        created_at_ns, job = _TOKEN.unpack(base64.b64decode(text + padding, altchars=b"-_", validate=True))
        return created_at_ns, _job_id(job)
    except (binascii.Error, struct.error, ValueError, JobletError) as cause:
        raise invalid("malformed page token", "use the next_page_token of the page before, unchanged") from cause


def _job_id(raw: bytes) -> JobId:
    return parse_job_id(raw.decode("ascii"))
