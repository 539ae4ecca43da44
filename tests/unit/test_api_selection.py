"""What one client wants: whole entries under their own sequences, gaps among them, and a page of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import JobletError, Reason
from proto.joblet.v1 import job_pb2
from services.api.followers.chunks import Chunk
from services.api.followers.selection import Page, Selection, selection
from services.api.followers.wanted import wanted_of

GAP = Chunk(0, 1, 3, 100, b"", partial=False, gap_reason="journal_full", gap_bytes=9)
LINES = st.lists(st.binary(max_size=8).map(lambda data: data.replace(b"\n", b"")), min_size=1, max_size=20)
PATTERNS = ["a", "^a", "a$", "^$", "x*", "[^b]", r"\Aa", r"a\z", "(?i)A", "a|^b", r"\x00"]


def chunk(lines: list[bytes], first: int = 1, *, ends: bool = True, stream: int = 1, time_ns: int = 100) -> Chunk:
    """A chunk of these entries, the last one with its line end or not."""
    data = b"".join(line + b"\n" for line in lines)
    return Chunk(stream, first, len(lines), time_ns, data if ends else data[:-1], partial=not ends)


def entries(chunks: list[Chunk]) -> dict[int, bytes]:
    """Each entry by its sequence, with its line end if it has one."""
    return {
        sequence: entry
        for piece in chunks
        for sequence, entry in enumerate(piece.entries() if piece.data else [b""], piece.first)
    }


@given(lines=LINES, pattern=st.sampled_from(PATTERNS), ends=st.booleans())
def test_an_expression_keeps_whole_entries_with_their_sequences(lines: list[bytes], pattern: str, ends: bool) -> None:  # noqa: FBT001  # drawn
    """What is left are the entries in which it matches, each alone, and each under its own sequence."""
    wanted = selection(pattern=pattern)
    assert wanted.matcher is not None
    expected = {
        n: line + b"\n" if ends or n < len(lines) else line
        for n, line in enumerate(lines, 1)
        if wanted.matcher.matches(line)
    }
    kept = list(wanted.of(chunk(lines, ends=ends)))
    assert entries(kept) == expected
    assert [piece.partial for piece in kept if piece.last == len(lines)] == [not ends] * (len(lines) in expected)


@given(lines=LINES, text=st.sampled_from(["a", "b", "\0", "é", "a\nb"]))
def test_a_text_keeps_the_entries_that_contain_it(lines: list[bytes], text: str) -> None:
    """The same for a text; one with a line end in it is in no entry."""
    expected = {n: line + b"\n" for n, line in enumerate(lines, 1) if text.encode() in line}
    assert entries(list(selection(text=text).of(chunk(lines)))) == expected


def test_neighbours_come_together_and_a_whole_chunk_as_it_is() -> None:
    """No copy of what is wanted whole, and one chunk for a run."""
    whole = chunk([b"a1", b"a2", b"b", b"a3"])
    assert [(piece.first, piece.data) for piece in selection(text="a").of(whole)] == [(1, b"a1\na2\n"), (4, b"a3\n")]
    (same,) = selection(pattern="[ab]").of(whole)
    assert same is whole


def test_filters_by_stream_and_time() -> None:
    """The start is inclusive, the end exclusive; a gap of unknown stream belongs to both."""
    one = chunk([b"a"], stream=2, time_ns=100)
    assert list(selection(stream=1).of(one)) == []
    assert list(selection(stream=2, start_ns=100, end_ns=101).of(one)) == [one]
    assert list(selection(end_ns=100).of(one)) == []
    assert list(selection(stream=1, text="zzz").of(GAP)) == [GAP]
    assert list(selection(stream=1, pattern="zzz").of(GAP._replace(stream=2))) == []
    assert Selection().everything
    assert not selection(pattern="a").everything


@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=12),
    offset=st.integers(0, 20),
    limit=st.integers(0, 20),
    gaps_count=st.booleans(),
)
def test_a_page_is_a_slice(sizes: list[tuple[int, bool]], offset: int, limit: int, gaps_count: bool) -> None:  # noqa: FBT001  # drawn
    """Offset and limit cut what passes through like a slice; gaps take part in it, or pass by."""
    chunks, model, first = [], [], 1
    for lines, missing in sizes:
        sequences = range(first, first + lines)
        if missing:
            chunks.append(GAP._replace(first=first, lines=lines))
        else:
            chunks.append(chunk([b"%d" % n for n in sequences], first))
        model += [(n, missing) for n in sequences]
        first += lines
    page = Page(offset=offset, limit=limit, gaps_count=gaps_count)
    given_now = [
        (sequence, bool(piece.gap_reason))
        for one in chunks
        for piece in page.of([one])
        for sequence in range(piece.first, piece.last + 1)
    ]
    counted = [entry for entry in model if gaps_count or not entry[1]]
    kept = counted[offset:][: limit or None]
    if gaps_count:
        assert given_now == kept
    else:
        last = kept[-1][0] if limit and len(kept) == limit else first
        assert given_now == [entry for entry in model if entry in kept or (entry[1] and entry[0] <= last)]
    assert page.full == bool(limit and len(kept) == limit)


@pytest.mark.requirement("S0.45")
@pytest.mark.threat("C24")
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"filter": "a", "regex": "b"}, "filter and regex exclude each other"),
        ({"tail": 1, "offset": 1}, "tail and offset exclude each other"),
        ({"tail": 0, "offset": 1}, "tail and offset exclude each other"),
        ({"regex": "("}, "no regular expression"),
        ({"regex": "x" * 5000}, "too long"),
        ({"filter": "x" * 5000}, "too long"),
        ({"stream": 7}, "stream: no such stream"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(fields: dict[str, int | str], words: str) -> None:
    """Before anything is read."""
    with pytest.raises(JobletError, match=words) as refused:
        wanted_of(job_pb2.StreamLogsRequest(**fields), now_ns=1)  # type: ignore[arg-type]  # drawn from a table
    assert refused.value.reason is Reason.INVALID


def test_what_is_meant_is_understood() -> None:
    """An offset up to the largest number there is, beside a limit and an expression."""
    request = job_pb2.StreamLogsRequest(regex="a+", offset=2**64 - 1, limit=5, from_sequence=0, follow=True)
    wanted = wanted_of(request, now_ns=1)
    assert (wanted.offset, wanted.limit, wanted.from_sequence, wanted.follow) == (2**64 - 1, 5, 1, True)
    assert wanted.selection == selection(pattern="a+")._replace(matcher=wanted.selection.matcher)
