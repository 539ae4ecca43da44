"""Reading an audit log: what is wanted, the last so many, and following it over rotations."""

import asyncio
import json
import os
import threading
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from common import auditread
from common.auditchain import FILE_NAME
from common.auditread import BATCH_ENTRIES, BLOCK_BYTES, TAIL_MAX, LogReader, Part, Wanted, read, wanted_of
from common.errors import JobletError, Reason
from tests.audit_lines import Line, names, write, writing
from tests.waiting import await_for

T0 = 1_767_323_045 * 10**9  # 2026-01-02T03:04:05Z


def objects(parts: list[Part]) -> list[str]:
    """The `object` of each entry."""
    return [entry.object for part in parts for entry in part.entries]


def past(directory: Path, wanted: Wanted | None = None, *, tail: int = 0) -> list[Part]:
    """All there is."""
    reader = LogReader(directory, wanted or Wanted())
    try:
        return list(reader.past(tail))
    finally:
        reader.close()


def counted(first: int, last: int) -> list[str]:
    """What `write` wrote."""
    return [str(number) for number in range(first, last + 1)]


def test_all_files_are_read_in_order(tmp_path: Path) -> None:
    """The oldest first; numbers without a hole."""
    write(tmp_path, 100, bytes_max=1500, kept=100)
    parts = past(tmp_path)
    assert objects(parts) == counted(1, 100)
    assert [entry.number for part in parts for entry in part.entries] == list(range(1, 101))


@pytest.mark.parametrize("tail", [1, 2, 5, 6, 50, 99, 100, 1000])
def test_the_last_so_many(tmp_path: Path, tail: int) -> None:
    """Of those that match, in order, over files."""
    write(tmp_path, 100, bytes_max=1500, kept=100)
    assert objects(past(tmp_path, tail=tail)) == counted(1, 100)[-tail:]


def test_the_last_so_many_of_a_file_of_several_blocks(tmp_path: Path) -> None:
    """Blocks begin and end within lines; only those that are needed are read."""
    count = 3 * BLOCK_BYTES // 200
    write(tmp_path, count)
    assert (tmp_path / FILE_NAME).stat().st_size > 3 * BLOCK_BYTES
    for tail in (1, 700, count // 2, count, count + 1):
        assert objects(past(tmp_path, tail=tail)) == counted(1, count)[-tail:]
    assert len(past(tmp_path, tail=3)) == 2, "one block, and the answer"
    assert objects(past(tmp_path)) == counted(1, count)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), "abcdef"),
        (Wanted(who="bob"), "cd"),
        (Wanted(method="StopJob"), "bd"),
        (Wanted(method="/joblet.v1.JobService/StopJob"), ""),
        (Wanted(object="6fa4"), "abc"),
        (Wanted(outcome="denied"), "df"),
        (Wanted(who="bob", outcome="denied"), "d"),
        (Wanted(start_ns=T0 + 2), "cdef"),
        (Wanted(end_ns=T0 + 2), "ab"),
        (Wanted(start_ns=T0 + 1, end_ns=T0 + 3), "bc"),
        (Wanted(who="nobody"), ""),
    ],
)
def test_what_is_wanted(tmp_path: Path, wanted: Wanted, expected: str) -> None:
    """All that is given must hold: who, method, object, outcome, from and before a time; with a tail, too."""
    table = (
        ("a", "ann", "GetJob", "6fa459ea", "allowed"),
        ("b", "ann", "StopJob", "6fa459ea", "allowed"),
        ("c", "bob", "GetJob", "6fa4ffff", "not_found"),
        ("d", "bob", "StopJob", "", "denied"),
        ("e", "", "GetJob", "data", "unauthenticated"),
        ("f", "carl", "ListJobs", "", "denied"),
    )
    with writing(tmp_path) as audit:
        for nanosecond, (why, who, method, object_, outcome) in enumerate(table):
            time = f"2026-01-02T03:04:05.{nanosecond:09d}Z"
            full = f"/joblet.v1.JobService/{method}"
            audit.record(Line(time=time, who=who, method=full, object=object_, outcome=outcome, why=why))
    assert "".join(entry.why for part in past(tmp_path, wanted) for entry in part.entries) == expected
    found = past(tmp_path, wanted, tail=2)
    assert "".join(entry.why for part in found for entry in part.entries) == expected[-2:]


def test_what_cannot_be_read_is_passed_over_and_counted(tmp_path: Path) -> None:
    """Garbage, a line of megabytes, JSON of another kind, and no UTF-8; a line that is being written is left alone."""
    write(tmp_path, 3)
    damage = b"\xff\xfe\n{}\n[1]\n" + b"x" * 3 * BLOCK_BYTES + b"\n" + b"[" * 100_000 + b"\n"
    path = tmp_path / FILE_NAME
    path.write_bytes(damage + path.read_bytes() + b'{"number":4,"time":"2026-01-02T0')
    parts = past(tmp_path)
    assert objects(parts) == counted(1, 3)
    assert sum(part.unreadable for part in parts) >= 5
    assert objects(past(tmp_path, tail=2)) == counted(2, 3)
    assert objects(past(tmp_path, tail=10)) == counted(1, 3)


def test_lines_about_the_log_itself_are_entries(tmp_path: Path) -> None:
    """What is torn or missing is shown by its outcome and why."""
    (tmp_path / FILE_NAME).write_bytes(b"half a li")
    write(tmp_path, 1)
    torn, line = (entry for part in past(tmp_path) for entry in part.entries)
    assert (torn.outcome, line.object) == ("torn", "1")
    assert "cut off" in torn.why


async def follow(directory: Path, act: Callable[[], None], count: int, *, tail: int = 0) -> list[str]:
    """The objects of the first `count` entries of a follower, during `act`, which runs in a thread."""
    got: list[str] = []
    async with aclosing(read(directory, Wanted(), tail=tail, follow=True, poll_s=0.01)) as parts:
        acting = threading.Thread(target=act)
        async for part in parts:
            got += [entry.object for entry in part.entries]
            if not acting.ident:
                acting.start()
            if len(got) >= count:
                break
    acting.join()
    return got


@pytest.mark.parametrize(("bytes_max", "tail"), [(2**26, 0), (2**26, 5), (1500, 0), (600, 3)])
def test_a_follower_gets_every_new_line_once(tmp_path: Path, bytes_max: int, tail: int) -> None:
    """Also when files are rotated faster than it looks; after all of the past, or its tail."""
    write(tmp_path, 20, bytes_max=bytes_max, kept=1000)
    expected = counted(1, 20)[-tail:] + counted(1, 200)
    got = asyncio.run(
        follow(tmp_path, lambda: write(tmp_path, 200, bytes_max=bytes_max, kept=1000), len(expected), tail=tail)
    )
    assert got == expected


def test_a_follower_that_is_overtaken_goes_on_with_what_is_kept(tmp_path: Path) -> None:
    """The file that it reads was rotated away between two looks: the rest of it, then the oldest that there is."""
    write(tmp_path, 3, bytes_max=600, kept=2)
    reader = LogReader(tmp_path, Wanted())
    assert objects(list(reader.past())) == counted(1, 3)
    write(tmp_path, 50, bytes_max=600, kept=2)
    got = []
    while (part := reader.new()) is not None:
        got.append(part)
    reader.close()
    own, *rest = objects(got)
    assert own == "1"
    assert rest == counted(1, 50)[-len(rest) :]
    assert 2 <= len(rest) < 20


def test_a_reader_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    """Cancelled while it waits and while a thread reads: descriptors are given back, and no closed one is read."""
    write(tmp_path, 5000, bytes_max=100_000)
    before = len(list(Path("/proc/self/fd").iterdir()))

    async def scenario() -> None:
        for turns in range(10):

            async def reading() -> None:
                async for _ in read(tmp_path, Wanted(who="nobody"), follow=True, poll_s=0.01):
                    pass

            task = asyncio.create_task(reading())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await await_for(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before + 8, what="files to be closed")

    asyncio.run(scenario())
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_message_has_so_many_entries(tmp_path: Path) -> None:
    """However many match in one block."""
    write(tmp_path, 2 * BATCH_ENTRIES + 1)

    async def sizes() -> list[int]:
        return [len(part.entries) async for part in read(tmp_path, Wanted())]

    assert max(asyncio.run(sizes())) <= BATCH_ENTRIES
    assert sum(asyncio.run(sizes())) == 2 * BATCH_ENTRIES + 1


def test_what_cannot_be_asked_for() -> None:
    """A tail without bound, times that are none, filters of kilobytes."""
    fine = {"start_time": 0, "end_time": 0, "who": "", "method": "", "object_": "", "outcome": "", "tail": 0}
    wanted_of(**fine)  # type: ignore[arg-type]
    for wrong in ({"tail": TAIL_MAX + 1}, {"start_time": -1}, {"start_time": 9, "end_time": 9}, {"who": "x" * 300}):
        with pytest.raises(JobletError) as refused:
            wanted_of(**fine | wrong)  # type: ignore[arg-type]
        assert refused.value.reason is Reason.INVALID
    assert wanted_of(**fine | {"start_time": 1_700_000_000}).start_ns == 1_700_000_000 * 10**9  # type: ignore[arg-type]


def test_files_that_are_renamed_while_they_are_opened(tmp_path: Path) -> None:
    """Each file once, whatever its name is by then; other names are none of the log."""
    write(tmp_path, 30, bytes_max=600, kept=50)
    (tmp_path / "audit.jsonl.bak").write_text("x")
    (tmp_path / "audit.jsonl.01").write_text("x")
    os.link(tmp_path / f"{FILE_NAME}.1", tmp_path / f"{FILE_NAME}.900")
    with auditread.opened(tmp_path) as files:
        assert len({file.inode for file in files}) == len(files) == len(names(tmp_path)) - 3
    numbers = [json.loads((tmp_path / file.name).read_text().splitlines()[0])["number"] for file in files]
    assert numbers == sorted(numbers)
