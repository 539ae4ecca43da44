"""Searching stored text gives exactly what looking at every entry gives: for a text, and for an expression."""

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import JobletError
from common.identifiers import new_job_id
from common.matching import Matcher, RegexMatcher, TextMatcher
from common.records import Stream
from services.persist import lines, search
from services.persist.runs import Run
from services.persist.search import Search
from tests.unit.test_persist_journal import TIME_NS, gap, make_store, output, query, records, write

JOB = new_job_id()
AWKWARD = ["a", "b", '"', "\\", "\\u001b", "\x1b", "\0", "\t", "\r", "n", "u", "\u2028", "ü", "\U0001f600", " ", "_b64"]
METADATA = ["timestamp", '"', "stdout", ":", "content", "17", '":"', "_b64", "partial", "true", "stream", "1", ","]


def _is_expression(pattern: str) -> bool:
    try:
        RegexMatcher(pattern)
    except JobletError:
        return False
    return True


pieces = st.one_of(st.sampled_from([text.encode() for text in AWKWARD]), st.binary(min_size=1, max_size=3))
contents = st.lists(pieces, max_size=5).map(lambda found: b"".join(found).replace(b"\n", b""))
needles = st.one_of(
    st.lists(st.sampled_from(AWKWARD), min_size=1, max_size=3).map("".join),
    st.sampled_from(METADATA),
    st.text(min_size=1, max_size=3),
)
expressions = st.one_of(
    st.sampled_from(["^a", "b$", "a+b", "[^a]b?", r"\x1b", r"\bn", '".*"', "u{2}", "(?i)U", "a|ü", r"\\", "x*", "^$"]),
    st.lists(st.sampled_from(["a", "b", "n", "ü", ".", "a?", "b*", "n+", "[ab]", "^", "$", "a{2}", " "]), min_size=1)
    .map("".join)
    .filter(_is_expression),
)


class Written:
    """A journal of one kind of entry after the other, and what is in it."""

    def __init__(self, writes: list[tuple[list[bytes], Stream, bool, int]]) -> None:
        self.encoded: list[bytes] = []
        self.entries: list[tuple[int, Stream, bytes, bool]] = []
        sequence = 1
        for batch, stream, partial, missing in writes:
            if missing:
                self.encoded.append(gap(sequence, missing, stream=stream, reason="".join(METADATA)))
                sequence += missing
            for content in batch if partial else [batch]:
                payload = content if isinstance(content, bytes) else b"".join(line + b"\n" for line in content)
                if not payload:
                    continue
                self.encoded.append(output(payload, sequence, stream=stream, time_ns=TIME_NS + sequence % 3))
                for line in [content] if isinstance(content, bytes) else content:
                    self.entries.append((sequence, stream, line, partial))
                    sequence += 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(contents, min_size=1, max_size=40),
            st.sampled_from([Stream.STDOUT, Stream.STDERR]),
            st.booleans(),
            st.sampled_from([0, 0, 0, 2]),
        ),
        min_size=1,
        max_size=8,
    ),
    needles,
    expressions,
)
@pytest.mark.requirement("S0.45")
@pytest.mark.threat("C19")
def test_a_search_gives_what_looking_at_every_entry_gives(
    writes: list[tuple[list[bytes], Stream, bool, int]], needle: str, pattern: str
) -> None:
    """Random bytes, escapes, what looks like metadata, pieces, gaps, both streams; few members and many."""
    written = Written(writes)
    with tempfile.TemporaryDirectory() as name:
        store = make_store(Path(name), flush_bytes=4096)
        half = len(written.encoded) // 2
        for batch in (written.encoded[:half], written.encoded[half:]):
            if batch:
                write(store, JOB, *batch)
        expression = RegexMatcher(pattern)
        cases: list[tuple[dict[str, str], Matcher]] = [
            ({"filter": needle}, TextMatcher(needle)),
            ({"regex": pattern}, expression),
        ]
        for fields, matcher in cases:
            expected = [entry for entry in written.entries if matcher.matches(entry[2])]
            assert _entries(query(store, JOB, **fields)) == expected, fields
            assert _gaps(query(store, JOB, **fields)) == _gaps(query(store, JOB)), (
                "what is missing may have been wanted"
            )
            assert _entries(query(store, JOB, **fields, offset=1, limit=2)) == expected[1:3]
            assert _entries(query(store, JOB, **fields, tail=2)) == expected[-2:]
            first = len(written.entries) // 2
            bounded = [entry for entry in expected if entry[0] >= first]
            assert _entries(query(store, JOB, **fields, from_sequence=first)) == bounded


@pytest.mark.parametrize("rare", [True, False])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("binary", [True, False])
def test_few_and_many_among_many_lines(tmp_path: Path, *, rare: bool, times: int, binary: bool) -> None:
    """Whatever way is taken, for one line in a thousand or for one in three, in a flood or not: it is exact."""
    source = random.Random(7)  # noqa: S311  # no secret
    content = [b"line %d %x" % (n, source.getrandbits(64)) for n in range(1, 9001)]
    marked = range(5, 9000, 1000 if rare else 3)
    for number in marked:
        content[number] += b' say "found" \xff' if binary else b' say "found"'
    store = make_store(tmp_path)
    for first in range(0, 9000, 9000 // times):
        payload = b"".join(line + b"\n" for line in content[first : first + 9000 // times])
        write(store, JOB, output(payload, first + 1, time_ns=TIME_NS + first))
    for fields in ({"filter": 'y "found'}, {"regex": 'y "fo+und'}, {"regex": 'y "f[aeiou]und'}):
        found = _entries(query(store, JOB, **fields))
        assert [entry[0] for entry in found] == [number + 1 for number in marked]
        assert [entry[2] for entry in found] == [content[number] for number in marked]


def test_only_a_few_lines_are_decoded_for_a_rare_text() -> None:
    """The candidates of a text are its lines, and those in base64; of one that is everywhere there are none."""
    payload = b"".join(b"line %d of the flood\n" % n for n in range(5000)) + b"a needle\n\xff\n"
    text = b"".join(chunk.text for chunk in lines.encode(records(output(payload, 1))[0]))
    candidates = Search.of(TextMatcher("needle")).candidates(text)
    assert candidates is not None
    assert [entry.raw for entry in lines.decode(b"\n".join(candidates))] == [b"a needle", b"\xff"]
    assert Search.of(TextMatcher("stdout")).candidates(text) is None
    assert Search.of(RegexMatcher("(a|b)")).candidates(text) is None


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("ERROR", "ERROR"),
        ("^ERROR: .*timeout$", "ERROR: "),
        ("abc?", "ab"),
        ("ab*cde", "cde"),
        ("ab+c", "ab"),
        ("a{2}bc", "bc"),
        ("abc{,3}", "ab"),
        ("x[]abc]yz", "yz"),
        ("x[^]abc]yz", "yz"),
        ("[[:alpha:]abc]d", "d"),
        ("(?i)error", ""),
        ("one|two", ""),
        (r"\Qa.b\E", ""),
        (".*", ""),
    ],
)
def test_the_text_that_an_expression_requires(pattern: str, text: str) -> None:
    """The longest that is plain to see, and nothing that could be missing in a match."""
    assert search.required_text(pattern) == text


@settings(max_examples=500, deadline=None)
@given(
    st.text(alphabet="ab.*+?[]^${}2,:-", min_size=1, max_size=8),
    st.lists(st.text(alphabet="ab2,:-[]{}^$", max_size=6), max_size=20),
)
def test_what_matches_has_the_required_text_in_it(pattern: str, entries: list[str]) -> None:
    """Of whatever operators an expression is made."""
    if not _is_expression(pattern):
        return
    text, matcher = search.required_text(pattern), RegexMatcher(pattern)
    for entry in entries:
        assert text in entry or not matcher.matches(entry.encode()), (pattern, text, entry)


def _gaps(runs: list[Run]) -> list[tuple[int, int]]:
    return [(run.first, run.last) for run in runs if run.gap_reason]


def _entries(runs: list[Run]) -> list[tuple[int, Stream, bytes, bool]]:
    return [
        (sequence, run.stream, content, run.partial)
        for run in runs
        for sequence, content in enumerate(run.contents(), run.first)
    ]
