"""A job's output as text: characters across pieces and messages, what is no UTF-8, and what is missing."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.joblet.v1 import job_pb2, persist_pb2
from services.api.transcript import PIECE_CHARACTERS, Transcript

OUT, ERR = persist_pb2.STDOUT, persist_pb2.STDERR


def chunk(data: bytes, stream: persist_pb2.StreamType = OUT) -> job_pb2.LogChunk:
    """A chunk of `stream`."""
    return job_pb2.LogChunk(stream=stream, first_sequence=1, lines=1, data=data)


def gap(first: int, lines: int, reason: str) -> job_pb2.LogChunk:
    """A chunk that is missing."""
    return job_pb2.LogChunk(first_sequence=first, lines=lines, gap=job_pb2.Gap(reason=reason))


def told(*messages: list[job_pb2.LogChunk]) -> list[str]:
    """What a client gets for each message, and at the end."""
    transcript = Transcript()
    texts = ["".join(transcript.of(chunks)) for chunks in messages]
    return [*texts, "".join(transcript.end())]


@pytest.mark.requirement("X9")
def test_a_character_is_never_in_two_messages() -> None:
    """Its beginning is kept until the rest comes, also when the other stream writes between."""
    euro = "€".encode()
    assert told([chunk(b"a" + euro[:1])], [chunk(euro[1:2])], [chunk(euro[2:] + b"b\n")]) == ["a", "", "€b\n", ""]
    assert told([chunk(euro[:2])], [chunk(b"\xc3", ERR)], [chunk(euro[2:]), chunk(b"\xa9", ERR)]) == ["", "", "€é", ""]


@pytest.mark.requirement("X9")
def test_what_is_no_utf8_is_replaced() -> None:
    """Stray bytes, overlong forms and surrogates become U+FFFD; NUL is a character; a begun one counts at the end."""
    assert told([chunk(b"\xff\0\n")]) == ["�\0\n", ""]
    assert told([chunk(b"x\xe2\x82\n")], [chunk(b"y\xc3")]) == ["x�\n", "y", "�"]
    assert "".join(told([chunk(b"\xed\xa0\x80|\xc0\xaf")])).replace("�", "") == "|"


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (b"1\n", "1\n[joblet: entries 5 to 9 are missing: journal_full]\n"),
        (b"begun", "begun\n[joblet: entries 5 to 9 are missing: journal_full]\n"),
        (b"\xe2\x82", "�\n[joblet: entries 5 to 9 are missing: journal_full]\n"),
        (b"", "[joblet: entries 5 to 9 are missing: journal_full]\n"),
    ],
)
def test_what_is_missing_is_a_line_of_its_own(before: bytes, expected: str) -> None:
    """Whatever stood before it; a character that was begun does not go on behind it."""
    assert "".join(told([chunk(before)], [gap(5, 5, "journal_full")])) == expected


def test_one_missing_entry_and_no_reason() -> None:
    """One entry is told as one; behind the line a new one begins."""
    assert told([gap(5, 1, ""), chunk(b"x\n")]) == ["[joblet: entry 5 is missing: unknown]\nx\n", ""]


def test_pieces_are_bounded() -> None:
    """What replaced bytes grow to stays below what a client accepts by default, and nothing is lost by cutting."""
    pieces = list(Transcript().of([chunk(b"\xff" * (3 * PIECE_CHARACTERS + 1))]))
    assert [len(piece) for piece in pieces] == [PIECE_CHARACTERS] * 3 + [1]
    assert max(len(piece.encode()) for piece in pieces) < 2 * 2**20


@given(
    st.lists(st.tuples(st.sampled_from([OUT, ERR]), st.binary(max_size=6)), max_size=12),
    st.lists(st.tuples(st.sampled_from([OUT, ERR]), st.text(max_size=4), st.integers(0, 3)), max_size=8),
)
def test_however_it_is_cut_each_stream_reads_the_same(
    raw: list[tuple[persist_pb2.StreamType, bytes]], texts: list[tuple[persist_pb2.StreamType, str, int]]
) -> None:
    """Cut anywhere, the text has the characters that the whole of each stream has, as many and no others."""
    cut = [
        (stream, text.encode()[start:end])
        for stream, text, at in texts
        for start, end in pairwise((0, at, max(at, len(text.encode()))))
    ]
    written = raw + cut
    text = "".join(told(*[[chunk(data, stream)] for stream, data in written]))
    expected = "".join(
        b"".join(data for one, data in written if one == stream).decode("utf-8", "replace") for stream in (OUT, ERR)
    )
    assert sorted(text) == sorted(expected)
