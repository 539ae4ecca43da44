"""Taking the oldest output out of an ended job's files, so that the job has all of it before or all of it after.

Sequences count over both streams, and members of both overlap. So one cut goes through both files, at a sequence that
no member reaches over; one gap line of no stream, at the beginning of stdout's file, stands for everything before it.
What stays is copied as it is, the end mark included. The steps, and what a process that is killed there leaves:

    stdout.log.gz.trimmed, stderr.log.gz.trimmed are written ──▶ the first is there: both are removed, nothing happened
    stdout.log.gz.trimmed takes the place of stdout.log.gz ──▶ only the second is there: it takes its place, too
    stderr.log.gz.trimmed takes the place of stderr.log.gz

`find_cut` is pure. Not here: whom to trim and to how much (retention.py), locks (store.py).
"""

import heapq
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec
import structlog

from common.failpoints import reached
from common.records import Stream
from services.persist import lines, member
from services.persist.disk import Disk, remove_file, stored_file, write_all
from services.persist.index import Member
from services.persist.member import DamagedMember
from services.persist.segment import Segment, StaleSegment

log = structlog.get_logger(__name__)

REASON: Final = "retention"
TRIMMED: Final = ".trimmed"
"""Ends the names of files that have not taken their places yet."""
GAP_MEMBER_BYTES_MAX: Final = 256
_COPY_BYTES: Final = 2**20

Logs = Mapping[Stream, Segment]


class TrimStopped(Exception):
    """The process ends; nothing was trimmed."""


class Cut(NamedTuple):
    """What goes: entries 1 to `through`, and of each file the bytes before `starts`, which are `members` members."""

    through: int
    time_ns: int
    """Highest time of an entry that goes."""
    starts: dict[Stream, int]
    members: dict[Stream, int]
    bytes_before: int
    bytes_after: int
    """Of both files together; afterwards at most."""


def find_cut(logs: Logs, bytes_max: int) -> Cut | None:
    """Where to cut so that both files together have at most `bytes_max`, and as much as possible stays.

    None: they have no more, or nothing can be gained. When even the last member is too much, all output goes.
    """
    starts, members = dict.fromkeys(logs, 0), dict.fromkeys(logs, 0)
    size = sum(segment.size_bytes for segment in logs.values())
    if size <= bytes_max:
        return None
    through = time_ns = 0
    merged = heapq.merge(*(_members(stream, logs[stream]) for stream in logs), key=_first_sequence)
    for stream, found in merged:
        if through and found.header.span.first_sequence > through and _after(logs, starts) <= bytes_max:
            break
        starts[stream] = found.offset + found.header.member_bytes
        members[stream] += 1
        through = max(through, found.header.span.last_sequence)
        time_ns = max(time_ns, found.header.span.last_time_ns)
    after = _after(logs, starts)
    return Cut(through, time_ns, starts, members, size, after) if through and after < size else None


def count_bytes(directory: int, logs: Logs, cut: Cut, *, stopped: Callable[[], bool]) -> int:
    """How many bytes of output go, as far as members can be read. Raises OSError, `StaleSegment`, `TrimStopped`."""
    total = 0
    for stream, segment in logs.items():
        for number in range(cut.members[stream]):
            if stopped():
                raise TrimStopped
            found = segment.index[number]
            try:
                total += _written_bytes(segment.read(directory, found), found.header.span.lines)
            except (DamagedMember, msgspec.DecodeError, ValueError) as cause:
                log.warning("a damaged member is trimmed", file=segment.name, offset=found.offset, why=str(cause))
    return total


def prepare(directory: int, logs: Logs, cut: Cut, gap_bytes: int, disk: Disk, *, stopped: Callable[[], bool]) -> None:
    """Write the shorter files beside the present ones. Raises OSError, `StaleSegment`, `TrimStopped`."""
    gap = lines.gap_chunk(
        lines.STREAM_NAMES[Stream.NONE],
        time_ns=cut.time_ns,
        sequence=1,
        lines=cut.through,
        gap_bytes=gap_bytes,
        reason=REASON,
    )
    # stdout's is there before stderr's is begun, whatever a power cut takes: see `recover`.
    for stream, head in ((Stream.STDOUT, member.build(gap.text, gap.span, level=1)), (Stream.STDERR, b"")):
        if stream is Stream.STDOUT or cut.starts[stream]:
            _write_rest(directory, logs[stream], cut.starts[stream], head, disk, stopped=stopped)
            disk.sync(directory)


def commit(directory: int, logs: Logs, cut: Cut, disk: Disk) -> None:
    """Put the shorter files in their places. Raises OSError."""
    for stream in (Stream.STDOUT, Stream.STDERR):
        if stream is Stream.STDOUT or cut.starts[stream]:
            _take_place(directory, logs[stream].name)
            disk.sync(directory)
            if stream is Stream.STDOUT:
                reached("persist.half_trimmed")


def recover(directory: int, names: Mapping[Stream, str], disk: Disk) -> None:
    """Finish or undo what a process that was killed left, as the head of this file tells. Raises OSError."""
    first, second = names[Stream.STDOUT] + TRIMMED, names[Stream.STDERR] + TRIMMED
    if _exists(directory, first):
        if remove_file(directory, second):
            disk.sync(directory)  # never the second alone
        remove_file(directory, first)
        log.warning("a trim that was cut off is undone")
    elif _exists(directory, second):
        _take_place(directory, names[Stream.STDERR])
        disk.sync(directory)
        log.warning("a trim that was cut off is finished")


def _members(stream: Stream, segment: Segment) -> Iterator[tuple[Stream, Member]]:
    for number in range(len(segment.index)):
        yield stream, segment.index[number]


def _first_sequence(item: tuple[Stream, Member]) -> int:
    return item[1].header.span.first_sequence


def _after(logs: Logs, starts: Mapping[Stream, int]) -> int:
    return GAP_MEMBER_BYTES_MAX + sum(segment.size_bytes - starts[stream] for stream, segment in logs.items())


def _written_bytes(text: bytes, count: int) -> int:
    data = lines.decode_data(text, count=count)
    if data is not None:
        return len(data)
    return sum(
        entry.gap_bytes if entry.gap else len(entry.raw) + (0 if entry.partial else 1) for entry in lines.decode(text)
    )


def _write_rest(
    directory: int, segment: Segment, start: int, head: bytes, disk: Disk, *, stopped: Callable[[], bool]
) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    with (
        stored_file(directory, segment.name) as source,
        stored_file(directory, segment.name + TRIMMED, flags=flags) as target,
    ):
        if not segment.is_in(directory):
            raise StaleSegment(segment.name)
        write_all(target, head, 0, disk)
        offset, shift = start, len(head) - start
        while offset < segment.size_bytes:
            if stopped():
                raise TrimStopped
            data = os.pread(source, min(_COPY_BYTES, segment.size_bytes - offset), offset)
            if not data:
                raise StaleSegment(segment.name)
            write_all(target, data, offset + shift, disk)
            offset += len(data)
        disk.sync(target)


def _take_place(directory: int, name: str) -> None:
    os.rename(name + TRIMMED, name, src_dir_fd=directory, dst_dir_fd=directory)


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
