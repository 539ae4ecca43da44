"""Whatever a job writes and however it arrives: what is queried is what was written."""

import base64
import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from common.identifiers import new_job_id
from common.records import Stream
from services.persist import lines, runs
from services.persist.member import Span
from tests.unit.test_persist_journal import (
    joined,
    last_sequences,
    make_store,
    output,
    query,
    records,
    run_program,
    write,
)

payloads = st.one_of(
    st.binary(min_size=1, max_size=60),
    st.text(min_size=1, max_size=30).map(str.encode),
    st.lists(st.sampled_from([b"a", b"\r\n", b"\n", b"\xff", b'"', b"\\n", b"\0"]), min_size=1).map(b"".join),
)
not_quite_utf8 = st.lists(
    st.sampled_from(
        [b"a", b"\n", b"\0", b'"', b"\\", b"\xc3\xa9", b"\xe2\x82\xac", b"\xf0\x9f\x98\x80", b"\xef\xbf\xbd"]
        + [bytes([byte]) for byte in (0x80, 0xBF, 0xC0, 0xC1, 0xC2, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF)]
    ),
    min_size=1,
    max_size=40,
).map(b"".join)
"""Whole characters and parts of them: every way in which bytes can be right or wrong side by side."""
writes = st.lists(st.tuples(st.sampled_from([Stream.STDOUT, Stream.STDERR]), payloads), min_size=1, max_size=25)


def journal(written: list[tuple[Stream, bytes]]) -> list[bytes]:
    """The records a monitor would make: a record with whole lines, then one PARTIAL for the rest."""
    encoded, sequence = [], 1
    for number, (stream, data) in enumerate(written):
        whole, end, rest = data.rpartition(b"\n")
        for payload in (whole + end, rest):
            if payload:
                encoded.append(output(payload, sequence, stream=stream, time_ns=10**18 + number))
                sequence += payload.count(b"\n") or 1
    return encoded


@settings(max_examples=120, deadline=None)
@given(written=writes, data=st.data())
def test_stored_bytes_are_the_written_bytes(written: list[tuple[Stream, bytes]], data: st.DataObject) -> None:
    """Any split into batches, any repeats from before the last acknowledged record, any restarts in between."""
    encoded, job = journal(written), new_job_id()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        store, position = make_store(base), 0
        while position < len(encoded):
            start = data.draw(st.integers(0, position), label="go back to")
            position = data.draw(st.integers(position + 1, len(encoded)), label="send up to")
            write(store, job, *encoded[start:position])
            if data.draw(st.booleans(), label="restart"):
                store = make_store(base)
        write(store, job, end=last_sequences(encoded)[-1])
        for reopened in (store, make_store(base)):
            runs = query(reopened, job)
            assert not [run for run in runs if run.gap_reason]
            for stream in (Stream.STDOUT, Stream.STDERR):
                assert joined(runs, stream) == b"".join(chunk for kind, chunk in written if kind is stream)
            assert [run.first for run in runs] == sorted(run.first for run in runs)
            assert sum(run.lines for run in runs) == last_sequences(encoded)[-1]
        for path in (base / "logs" / job).iterdir():
            run_program("gzip", "-t", str(path))


@settings(max_examples=80, deadline=None)
@given(written=writes, dropped=st.sets(st.integers(0, 40)))
def test_what_was_never_sent_shows_as_gaps(written: list[tuple[Stream, bytes]], dropped: set[int]) -> None:
    """Records and gaps together are all sequences, each once, in order."""
    encoded, job = journal(written), new_job_id()
    last = last_sequences(encoded)[-1]
    with tempfile.TemporaryDirectory() as name:
        store = make_store(Path(name))
        kept = [record for number, record in enumerate(encoded) if number not in dropped]
        write(store, job, *kept, end=last)
        runs = query(store, job)
    expected = 1
    for run in runs:
        assert run.first == expected
        expected = run.last + 1
    assert expected == last + 1
    missing = sum(run.lines for run in runs if run.gap_reason)
    assert missing == last - sum(record.count(b"\n", 36) or 1 for record in kept)


@settings(max_examples=60, deadline=None)
@given(written=writes, cut=st.floats(0, 1), noise=st.binary(max_size=200))
def test_any_tail_is_survived(written: list[tuple[Stream, bytes]], cut: float, noise: bytes) -> None:
    """The file cut at any byte and followed by anything: after sending again all is there, once, readable."""
    encoded, job = journal(written), new_job_id()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        store = make_store(base)
        for record in encoded:
            write(store, job, record)
        for path in (base / "logs" / job).iterdir():
            content = path.read_bytes()
            path.write_bytes(content[: int(len(content) * cut)] + noise)
        store = make_store(base)
        write(store, job, *encoded)
        runs = query(store, job)
        for stream in (Stream.STDOUT, Stream.STDERR):
            assert joined(runs, stream) == b"".join(chunk for kind, chunk in written if kind is stream)
        for path in (base / "logs" / job).iterdir():
            run_program("gzip", "-t", str(path))


def expected_line(line: bytes, sequence: int, *, partial: bool) -> bytes:
    """One line of docs/storage-format.md, made without any of what persist makes it with."""
    try:
        content = {"content": line.decode()}
    except UnicodeDecodeError:
        content = {"content_b64": base64.b64encode(line).decode()}
    entry = {
        "timestamp": 17,
        "sequence": sequence,
        "stream": "stdout",
        **content,
        **({"partial": True} if partial else {}),
    }
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode()


@settings(max_examples=400, deadline=None)
@given(data=st.one_of(not_quite_utf8, payloads), first=st.integers(1, 2**40), skip=st.integers(0, 3))
def test_each_line_is_text_exactly_when_it_is_utf8(data: bytes, first: int, skip: int) -> None:
    """Whatever the neighbours of a line are, it is written as the format says, and read back by both ways."""
    for payload, partial in ((data.replace(b"\n", b""), True), (data + b"\n", False)):
        if not payload:
            continue
        wanted = [payload] if partial else payload.split(b"\n")[:-1]
        left_out = min(skip, len(wanted) - 1)
        (record,) = records(output(payload, first, time_ns=17))
        text = b"".join(chunk.text for chunk in lines.encode(record, skip=left_out))
        expected = [
            expected_line(line, number, partial=partial)
            for number, line in enumerate(wanted[left_out:], first + left_out)
        ]
        assert text == b"".join(line + b"\n" for line in expected)
        span = Span(len(expected), first + left_out, first + len(wanted) - 1, 17, 17)
        slowly = list(runs.of_text(text, Stream.STDOUT, None, None, span=span._replace(last_time_ns=18)))
        assert list(runs.of_text(text, Stream.STDOUT, None, None, span=span)) == slowly
        assert b"".join(run.data for run in slowly) == b"\n".join(wanted[left_out:]) + (b"" if partial else b"\n")
