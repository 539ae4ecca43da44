"""Reading the files of an audit log while its service writes them: what there is, what is wanted of it, what comes.

Belongs here: files in their order, selecting, the last so many, following over rotations; plain blocking functions of
bounded work, for a thread. Does not belong here: verifying the chain (cli/joblet/auditverify.py), messages of gRPC.
Lines that cannot be read are skipped and counted: who asks is told, and `joblet verify --audit` tells where they are.
"""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple, TypeVar

import msgspec

from common import auditchain
from common.auditchain import FILE_NAME, LINE_BYTES_MAX
from common.errors import JobletError, invalid
from common.quantities import format_time_ns, parse_time_ns, request_time_ns

BLOCK_BYTES: Final = 256 * 1024
"""Read and decoded in one go: some milliseconds."""
BATCH_ENTRIES: Final = 500
"""Of one message, which stays below a mebibyte."""
TAIL_MAX: Final = 10_000
FILTER_CHARACTERS_MAX: Final = 256
POLL_S: Final = 0.5
"""How often a follower looks for new lines."""
NUMBERS_AHEAD: Final = 8
"""Rotations between two looks at the directory that are nothing special."""
_SECOND: Final = len("2026-01-02T03:04:05")
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO there must not hold us
T = TypeVar("T")


class Entry(msgspec.Struct, frozen=True):
    """One line, of a call or of something else; what a line does not have is empty."""

    number: int
    time: str
    who: str = ""
    serial: str = ""
    roles: tuple[str, ...] = ()
    scheme: str = ""
    method: str = ""
    object: str = ""
    peer: str = ""
    outcome: str = ""
    why: str = ""
    rule: str = ""  # of retention


class Wanted(NamedTuple):
    """Which entries: all that are given must hold. Times are Unix nanoseconds, from `start_ns` and before `end_ns`."""

    start_ns: int = 0
    end_ns: int = 0
    who: str = ""
    method: str = ""
    object: str = ""
    outcome: str = ""

    def matches(self, entry: Entry) -> bool:
        """Whether it is wanted. `method` is the last part of its name, `object` the beginning of its."""
        if self.who and entry.who != self.who:
            return False
        if self.method and entry.method.rpartition("/")[2] != self.method:
            return False
        if not entry.object.startswith(self.object) or (self.outcome and entry.outcome != self.outcome):
            return False
        if self.start_ns and _is_before(entry, self.start_ns):
            return False
        return not self.end_ns or _is_before(entry, self.end_ns)


def wanted_of(
    *, start_time: int, end_time: int, who: str, method: str, object_: str, outcome: str, tail: int
) -> Wanted:
    """What a request asks for. Raises JobletError(INVALID)."""
    if tail > TAIL_MAX:
        raise invalid(f"tail: {tail} is too many", f"ask for at most {TAIL_MAX}, or for all between two times")
    for name, text in (("who", who), ("method", method), ("object", object_), ("outcome", outcome)):
        if len(text) > FILTER_CHARACTERS_MAX:
            raise invalid(f"{name} has {len(text)} characters, at most {FILTER_CHARACTERS_MAX}")
    start_ns, end_ns = request_time_ns(start_time), request_time_ns(end_time)
    if end_ns and start_ns >= end_ns:
        raise invalid("start_time is not before end_time", "no time lies between them")
    return Wanted(start_ns, end_ns, who, method, object_, outcome)


class Part(NamedTuple):
    """What one step found, and how many lines it could not read."""

    entries: list[Entry]
    unreadable: int


class Opened(NamedTuple):
    """A file of the log. `inode` tells it from others whatever its name is by now."""

    name: str
    descriptor: int
    inode: int


def time_ns_of(entry: Entry) -> int:
    """When it was written, Unix nanoseconds; 0: it does not say."""
    try:
        return parse_time_ns(entry.time, now_ns=0)
    except JobletError:
        return 0


def _is_before(entry: Entry, time_ns: int) -> bool:
    """Whether it was written before then. Times are compared as text, which is fast, but within one second."""
    second, other = entry.time[:_SECOND], _second_of(time_ns)
    return second < other if second != other else time_ns_of(entry) < time_ns


@lru_cache(4)
def _second_of(time_ns: int) -> str:
    return format_time_ns(time_ns)[:_SECOND]


@contextmanager
def opened(directory: Path) -> Iterator[list[Opened]]:
    """All files of the log, the oldest first, whatever rotation does meanwhile. Raises OSError.

    Rotation gives files higher numbers only. So, opened from the lowest on, a file is missed only when it has a number
    in the end that was not tried; one may come twice.
    """
    tried: set[int] = set()
    while True:
        tried |= {number + ahead for number in _numbers(directory) for ahead in range(NUMBERS_AHEAD)}
        with ExitStack() as stack:
            found = _opened_as(sorted(tried), directory, stack)
            if _numbers(directory) <= tried:
                yield found
                return


def _numbers(directory: Path) -> set[int]:
    """Of the files that there are; 0 is the one that is written."""
    return {auditchain.older_number(name) or 0 for name in os.listdir(directory)} | {0}  # noqa: PTH208  # names only


def _opened_as(numbers: list[int], directory: Path, stack: ExitStack) -> list[Opened]:
    found: dict[int, Opened] = {}
    for number in numbers:
        name = f"{FILE_NAME}.{number}" if number else FILE_NAME
        try:
            descriptor = os.open(directory / name, _FLAGS)
        except FileNotFoundError:
            continue
        stack.callback(os.close, descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"{name} is no regular file")
        found.setdefault(status.st_ino, Opened(name, descriptor, status.st_ino))
    return list(reversed(found.values()))


class LogReader:
    """One reading of a log: what there is, then what comes. Close it."""

    def __init__(self, directory: Path, wanted: Wanted) -> None:
        self._directory = directory
        self._wanted = wanted
        self._stack = ExitStack()
        self._files: list[Opened] = self._stack.enter_context(opened(directory))
        self._offset = 0
        self._rest = b""
        self._lock = Lock()
        self._closed = False

    def close(self) -> None:
        """Let go of the files, after the step that may be under way in a thread."""
        with self._lock:
            self._closed = True
            self._stack.close()

    def run(self, step: Callable[[], T]) -> T | None:
        """Do a step of this reader; None when it was closed meanwhile."""
        with self._lock:
            return None if self._closed else step()

    def past(self, tail: int = 0) -> Iterator[Part]:
        """What there is now, oldest first; with `tail` only the last so many of what is wanted. A step is one block.

        A tail is read from the end and comes in the last step: memory for that many entries, so bound it.
        """
        if tail:
            yield from self._last(tail)
        while (part := self.step()) is not None:
            yield part

    def step(self) -> Part | None:
        """The next block; None: nothing more for now."""
        while self._files:
            block = os.pread(self._files[0].descriptor, BLOCK_BYTES, self._offset)
            if block:
                self._offset += len(block)
                return self._part(block)
            if len(self._files) == 1:
                return None
            del self._files[0]
            self._offset, self._rest = 0, b""
        return None

    def new(self) -> Part | None:
        """As `step`, over rotations, too."""
        part = self.step()
        if part is not None:
            return part
        try:
            inode = (self._directory / FILE_NAME).stat().st_ino
        except FileNotFoundError:
            return None  # between two steps of a rotation
        if self._files and self._files[-1].inode == inode:
            return None
        stack = ExitStack()
        files = stack.enter_context(opened(self._directory))
        own = self._files[-1].inode if self._files else 0
        place = next((number for number, file in enumerate(files) if file.inode == own), None)
        self._stack.close()
        self._stack, self._files = stack, files[place or 0 :]
        if place is None:
            self._offset, self._rest = 0, b""
        return self.step()

    def _last(self, count: int) -> Iterator[Part]:
        found: list[Entry] = []
        ends = [_end_of_lines(file.descriptor) for file in self._files]
        for file, end in zip(reversed(self._files), reversed(ends), strict=True):
            for lines in _blocks_backwards(file.descriptor, end):
                entries, unreadable = _entries_of(lines)
                found.extend(entry for entry in reversed(entries) if self._wanted.matches(entry))
                yield Part([], unreadable)
                if len(found) >= count:
                    break
            if len(found) >= count:
                break
        yield Part(found[count - 1 :: -1] if len(found) >= count else found[::-1], 0)
        if self._files:
            del self._files[:-1]
            self._offset = ends[-1]

    def _part(self, block: bytes) -> Part:
        *lines, self._rest = (self._rest + block).split(b"\n")
        entries, unreadable = _entries_of(lines)
        if len(self._rest) > LINE_BYTES_MAX:
            self._rest, unreadable = b"", unreadable + 1
        return Part([entry for entry in entries if self._wanted.matches(entry)], unreadable)


async def read(
    directory: Path, wanted: Wanted, *, tail: int = 0, follow: bool = False, poll_s: float = POLL_S
) -> AsyncGenerator[Part, None]:
    """What is wanted, a batch at a time, read in threads; with `follow` without an end. Raises OSError."""
    reader = await asyncio.to_thread(LogReader, directory, wanted)
    unreadable = 0
    try:
        past = reader.past(tail)

        def of_past() -> Part | None:
            return next(past, None)

        step = of_past
        while True:
            part = await asyncio.to_thread(reader.run, step)
            if part is not None:
                unreadable += part.unreadable
                for batch in _batches(part.entries):
                    yield Part(batch, unreadable)
                    unreadable = 0
            elif not follow:
                break
            elif step is of_past:
                step = reader.new
            else:
                await asyncio.sleep(poll_s)
        if unreadable:
            yield Part([], unreadable)
    finally:
        reader.close()


def _batches(entries: list[Entry]) -> Iterator[list[Entry]]:
    return (entries[start : start + BATCH_ENTRIES] for start in range(0, len(entries), BATCH_ENTRIES))


def _entries_of(lines: Iterable[bytes]) -> tuple[list[Entry], int]:
    read = [auditchain.decoded(_entries, line) for line in lines]
    entries = [entry for entry in read if entry is not None]
    return entries, len(read) - len(entries)


def _blocks_backwards(descriptor: int, end: int) -> Iterator[list[bytes]]:
    """The lines before `end`, which is the end of one, block by block from the last to the first."""
    rest: bytes | None = None  # what stands before the first newline of the block behind
    while end > 0:
        begin = max(0, end - BLOCK_BYTES)
        data = os.pread(descriptor, end - begin, begin)
        first, *lines = data.split(b"\n")
        if rest is None:
            lines, joined = lines[:-1], first
        elif lines:
            lines[-1] += rest
            joined = first
        else:
            joined = first + rest
        rest, end = joined[-2 * LINE_BYTES_MAX :], begin
        yield lines
    if rest:
        yield [rest]


def _end_of_lines(descriptor: int) -> int:
    """Behind the last newline of the file: what follows may be in the middle of being written."""
    end = os.fstat(descriptor).st_size
    begin = max(0, end - 2 * LINE_BYTES_MAX)
    newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
    return begin + newline + 1 if newline >= 0 or not begin else end


_entries: Final = msgspec.json.Decoder(Entry)
