"""Escaping, cutting of chunks and exit codes: the pure leaves below rnx's output."""

import random

import pytest

from cli.client.escape import TerminalText, escape, escape_line
from cli.client.exits import EXIT_OF_REASON, Exit, exit_of_job
from cli.client.logs import after, entries
from cli.rnx.metrics import blocks
from common.errors import Reason
from proto.joblet.v1 import job_pb2


@pytest.mark.threat("C20")
def test_every_control_character_is_shown() -> None:
    """Nothing of C0, C1 or DEL but tab and newline is left, and text beside it is."""
    controls = "".join(chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)])
    shown = escape(controls + "é漢🎉")
    assert [char for char in shown if ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0] == ["\t", "\n"]
    assert shown.endswith("é漢🎉")
    assert escape("\x1b\x9b\u202e\u2028") == "\\x1b\\x9b\\u202e\\u2028"


@pytest.mark.threat("C20")
def test_one_line_is_one_line() -> None:
    """Whatever an error or a name contains."""
    assert escape_line("a\r\n b\tc\x85d\x00") == "a b c d\\x00"


def test_text_for_a_terminal_does_not_depend_on_how_it_was_cut() -> None:
    """Characters that a piece cuts in two come out whole; invalid bytes are shown as they are."""
    generator = random.Random(3)  # noqa: S311  # no secret
    data = "aé漢🎉\n\x1b[0m".encode() + b"\xff\xc3" + b"end\xe2\x82"
    whole = TerminalText()
    expected = whole.feed(data, final=True)
    assert expected == "aé漢🎉\n\\x1b[0m\\xff\\xc3end\\xe2\\x82".encode()
    for _ in range(50):
        pieces, text, rest = [], TerminalText(), data
        while rest:
            size = generator.randint(1, 4)
            pieces.append(text.feed(rest[:size]))
            rest = rest[size:]
        assert b"".join([*pieces, text.feed(b"", final=True)]) == expected


@pytest.mark.parametrize("partial", [False, True])
def test_any_cut_of_a_chunk_continues_it(partial: bool) -> None:  # noqa: FBT001  # a parameter of pytest
    """What is after a sequence is exactly what was not before it, for every sequence."""
    data = b"one\n\nthree\nfour" if partial else b"one\n\nthree\nfour\n"
    chunk = job_pb2.LogChunk(first_sequence=10, lines=4, data=data, partial=partial)
    everything = list(entries(chunk))
    assert [sequence for sequence, _, _ in everything] == [10, 11, 12, 13]
    assert [is_partial for _, _, is_partial in everything] == [False, False, False, partial]
    for sequence in range(1, 11):
        assert after(chunk, sequence) is chunk
    for sequence in range(11, 14):
        rest = after(chunk, sequence)
        assert rest is not None
        assert list(entries(rest)) == [entry for entry in everything if entry[0] >= sequence]
        assert data.endswith(rest.data)
    assert after(chunk, 14) is None


def test_a_gap_is_cut_likewise() -> None:
    """A gap that began before is told only for what is new of it."""
    gap = job_pb2.LogChunk(first_sequence=10, lines=4, gap=job_pb2.Gap(reason="journal_full"))
    rest = after(gap, 12)
    assert rest is not None
    assert (rest.first_sequence, rest.lines, rest.gap.reason) == (12, 2, "journal_full")


def test_every_reason_has_an_exit_code() -> None:
    """1 failure, 2 usage, 3 not found, 4 refused, 5 unavailable: no reason is forgotten, none is success."""
    assert set(EXIT_OF_REASON) == set(Reason)
    assert set(EXIT_OF_REASON.values()) == {
        *(Exit.FAILURE, Exit.USAGE, Exit.NOT_FOUND, Exit.REFUSED, Exit.UNAVAILABLE),
    }


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (job_pb2.Job(exit_code=0), 0),
        (job_pb2.Job(exit_code=255), 255),
        (job_pb2.Job(signal=15), 143),
        (job_pb2.Job(), 1),
    ],
)
def test_exit_of_a_job(job: job_pb2.Job, code: int) -> None:
    """Its own code, 128 + n for a signal, 1 when it has neither."""
    assert exit_of_job(job) == code


def test_blocks_keep_the_highest() -> None:
    """However narrow the plot, a short peak is seen; without any use all is at the bottom."""
    assert blocks([0, 0, 0, 100, 0, 0], width=3) == "▁█▁"
    assert blocks([0, 0], width=10) == "▁▁"
