"""Files are replaced by shorter ones, or removed, while a query reads them: it goes on where it was."""

import hashlib
import random
from pathlib import Path

import pytest

from common.errors import JobletError, Reason
from common.identifiers import JobId, new_job_id
from common.records import Stream
from services.persist.index import Member
from services.persist.reader import LogReader
from services.persist.runs import Run
from services.persist.segment import Segment, StaleSegment
from services.persist.store import Store, View
from tests.unit.test_persist_journal import TIME_NS, gap, make_store, output, query, select, write

JOB = new_job_id()
LINES = 600


class Replaced:
    """A store whose files are replaced by those of `after` when so many members have been read."""

    def __init__(self, before: Store, after: Store | None, *, reads: int) -> None:
        self._before, self._after, self._reads = before, after, reads
        self._old = list(before.view(JOB).segments.values())

    @property
    def happened(self) -> bool:
        """The old files are not there any more."""
        return self._reads <= 0

    def view(self, job: JobId) -> View:
        """Of the files that are there; where all were removed by hand, nobody has told."""
        return (self._after if self.happened and self._after else self._before).view(job)

    def read(self, job: JobId, segment: Segment, wanted: Member) -> bytes:
        """As Segment.read does when the inode is another one."""
        return self._store_of(segment).read(job, segment, wanted)

    def read_block(self, job: JobId, segment: Segment, offset: int, size_bytes: int) -> bytes:
        """The same."""
        return self._store_of(segment).read_block(job, segment, offset, size_bytes)

    def _store_of(self, segment: Segment) -> Store:
        if self.happened and segment in self._old:
            raise StaleSegment(segment.name) if self._after else FileNotFoundError(segment.name)
        self._reads -= 1
        store = self._before if segment in self._old else self._after
        assert store
        return store


def line(sequence: int) -> bytes:
    """One of what the job wrote: long ones make members that are read one by one, short ones many at once."""
    filling = hashlib.shake_256(b"%d" % sequence).hexdigest(1500 if sequence > LINES // 3 else 1)
    return b"line %d %s %s\n" % (sequence, b"odd" if sequence % 2 else b"even", filling.encode())


def stream_of(sequence: int) -> Stream:
    """Both streams between each other."""
    return Stream.STDERR if sequence % 7 in (0, 1) else Stream.STDOUT


def stored(base: Path, *, trimmed: int) -> Store:
    """All lines, of which the first were trimmed; a member each 20 of them."""
    base.mkdir()
    store = make_store(base, flush_bytes=2**20)
    if trimmed:
        write(store, JOB, gap(1, trimmed, stream=Stream.NONE, reason="retention"))
    for first in range(trimmed + 1, LINES + 1, 20):
        numbers = range(first, min(first + 20, LINES + 1))
        write(store, JOB, *[output(line(n), n, stream=stream_of(n), time_ns=TIME_NS + n) for n in numbers])
    write(store, JOB, end=LINES)
    return store


def look(source: Replaced, **fields: object) -> list[Run]:
    """What a query gives."""
    reader = LogReader(source, select(JOB, **fields))
    return [run for step in reader.steps(source.view(JOB)) for run in step]


def collect(source: Replaced, given: list[int]) -> None:
    """Put all sequences into `given` that a query gives."""
    for step in LogReader(source, select(JOB)).steps(source.view(JOB)):
        given += [n for run in step for n in range(run.first, run.last + 1)]


@pytest.mark.requirement("S0.73")
@pytest.mark.parametrize("trimmed", [1, 100, 333, 580])
def test_a_query_goes_on_behind_what_it_has_given(tmp_path: Path, trimmed: int) -> None:
    """Whenever it happens: every sequence once, in order, as a line or within the gap that stands there now."""
    before, after = stored(tmp_path / "before", trimmed=0), stored(tmp_path / "after", trimmed=trimmed)
    happened = 0
    for reads in range(0, 62, 3):
        source = Replaced(before, after, reads=reads)
        runs = look(source)
        assert [n for run in runs for n in range(run.first, run.last + 1)] == list(range(1, LINES + 1))
        for run in runs:
            if run.gap_reason:
                assert (run.gap_reason, run.last) == ("retention", trimmed)
            else:
                assert run.data == b"".join(line(n) for n in range(run.first, run.last + 1))
        happened += source.happened and any(run.gap_reason for run in runs)
    assert happened or trimmed == 1


@pytest.mark.requirement("S0.73")
@pytest.mark.parametrize("seed", range(6))
def test_searches_pages_and_tails_go_on_too(tmp_path: Path, seed: int) -> None:
    """Nothing twice and nothing out of order, and no more than was asked for; behind the gap, nothing is left out."""
    source = random.Random(seed)  # noqa: S311  # no secret
    trimmed = source.randrange(1, 400)
    before, after = stored(tmp_path / "before", trimmed=0), stored(tmp_path / "after", trimmed=trimmed)
    for _ in range(12):
        searches: list[dict[str, object]] = [
            {"filter": "odd"},
            {"regex": "[a-z]dd"},
            {},
            {"filter": "nowhere"},
            {"filter": "line 599 "},
        ]
        fields = source.choice(searches)
        kind = source.choice(("page", "tail", "all", "stderr"))
        wanted = (
            fields
            | {
                "page": {"offset": source.randrange(100), "limit": source.randrange(1, 100)},
                "tail": {"tail": source.randrange(1, 150)},
                "all": {},
                "stderr": {"stream": int(Stream.STDERR)},
            }[kind]
        )
        runs = look(Replaced(before, after, reads=source.randrange(60)), **wanted)
        told = [run for run in runs if not (fields and run.gap_reason)]  # who searches is told of gaps besides
        given = [n for run in told for n in range(run.first, run.last + 1)]
        assert given == sorted(set(given)), wanted
        whole = [n for run in query(before, JOB, **wanted) for n in range(run.first, run.last + 1)]
        if kind == "page":
            assert len(given) <= len(whole)
        else:
            assert [n for n in given if n > trimmed] == [n for n in whole if n > trimmed], wanted
            assert set(given) <= set(whole) or kind == "tail"
        assert all(
            run.gap_reason or run.data == b"".join(line(n) for n in range(run.first, run.last + 1)) for run in runs
        )


def test_a_follower_goes_on_too(tmp_path: Path) -> None:
    """Between two looks of one that waits, nothing is repeated."""
    before, after = stored(tmp_path / "before", trimmed=0), stored(tmp_path / "after", trimmed=550)
    source = Replaced(before, after, reads=10)
    reader = LogReader(source, select(JOB, wait=True, from_sequence=30))
    given = [
        n
        for _ in range(3)
        for step in reader.steps(source.view(JOB))
        for run in step
        for n in range(run.first, run.last + 1)
    ]
    assert given == list(range(30, LINES + 1))
    assert reader.is_finished(source.view(JOB))


@pytest.mark.requirement("S0.63")
@pytest.mark.parametrize("reads", [1, 10])
def test_what_was_removed_is_not_found(tmp_path: Path, reads: int) -> None:
    """By hand, without telling, or by the store; what was read until then is given before."""
    before = stored(tmp_path / "before", trimmed=0)
    (tmp_path / "empty").mkdir()
    for after in (None, make_store(tmp_path / "empty")):
        source = Replaced(before, after, reads=reads)
        given: list[int] = []
        with pytest.raises(JobletError) as error:
            collect(source, given)
        assert error.value.reason is Reason.NOT_FOUND
        assert given == list(range(1, len(given) + 1))
        assert bool(given) == (reads > 1)


def test_a_file_that_nobody_told_of_is_an_error(tmp_path: Path) -> None:
    """The store knows the old file, and only that: the query ends, rather than to look at it for ever."""
    before = stored(tmp_path / "before", trimmed=0)
    source = Replaced(before, before, reads=3)
    with pytest.raises(OSError, match="nobody told"):
        look(source)
