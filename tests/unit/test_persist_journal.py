"""Builders of journal records and stores for all tests of persist, and what they themselves must fulfil."""

import random
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from common.config.settings import Local
from common.identifiers import JobId, new_job_id
from common.records import Flags, Record, RecordType, Stream, decode_all, encode
from services.persist import lines
from services.persist.disk import Disk, HostDisk
from services.persist.reader import LogReader
from services.persist.runs import Run
from services.persist.selection import LogSelection, of_batches
from services.persist.store import Store

TIME_NS = 1_700_000_000_000_000_000


def output(payload: bytes, sequence: int, *, stream: Stream = Stream.STDOUT, time_ns: int = TIME_NS) -> bytes:
    """The bytes of an OUTPUT record; PARTIAL where `payload` does not end with a line end."""
    partial = not payload.endswith(b"\n")
    return encode(
        RecordType.OUTPUT,
        payload,
        time_ns=time_ns,
        sequence=sequence,
        lines=1 if partial else payload.count(b"\n"),
        stream=stream,
        flags=Flags.PARTIAL if partial else Flags.NONE,
    )


def gap(sequence: int, count: int, *, stream: Stream = Stream.STDOUT, reason: str = "journal full") -> bytes:
    """The bytes of a GAP record."""
    payload = msgspec.json.encode({"bytes": 100 * count, "reason": reason})
    return encode(RecordType.GAP, payload, time_ns=TIME_NS, sequence=sequence, lines=count, stream=stream)


def records(*encoded: bytes) -> list[Record]:
    """Decoded and checked, as ingest hands them on."""
    found = list(decode_all(b"".join(encoded)))
    for record in found:
        lines.check(record)
    return found


def make_store(base: Path, *, disk: Disk | None = None, durability: str = "flush", flush_bytes: int = 65536) -> Store:
    """A store below `base`."""
    for name in ("logs", "metrics"):
        (base / name).mkdir(exist_ok=True)
    local = msgspec.convert({"durability": durability, "flush_bytes": flush_bytes}, Local)
    return Store(logs=base / "logs", metrics=base / "metrics", settings=local, disk=disk or HostDisk())


def write(store: Store, job: JobId, *encoded: bytes, end: int | None = None) -> None:
    """Write a batch that was just received."""
    batch = records(*encoded)
    through = max((record.last_sequence for record in batch), default=0)
    store.write(job, batch, through=max(through, end or 0), end=end)


def query(store: Store, job: JobId, **fields: object) -> list[Run]:
    """The runs that a QueryLogBatches with these fields gives. `query` fields and its own are told apart here."""
    return read(store, select(job, **fields))


def select(job: JobId, **fields: object) -> LogSelection:
    """The selection of a request with these fields."""
    from proto.joblet.v1 import persist_pb2 as pb

    outer = {name: fields.pop(name) for name in ("from_sequence", "until_sequence", "tail", "wait") if name in fields}
    request = pb.LogBatchQueryRequest(query=pb.LogQueryRequest(job_id=job, **fields), **outer)  # type: ignore[arg-type]
    return of_batches(request)


def read(store: Store, selection: LogSelection) -> list[Run]:
    """All that one look gives."""
    return [run for step in LogReader(store, selection).steps(store.view(selection.job)) for run in step]


def joined(runs: Iterable[Run], stream: Stream) -> bytes:
    """The bytes of one stream."""
    return b"".join(run.data for run in runs if run.stream is stream)


def random_journal(source: random.Random, *, count: int) -> tuple[list[bytes], dict[Stream, bytes]]:
    """Records of both streams without a hole, and the bytes of each stream."""
    encoded: list[bytes] = []
    expected = {Stream.STDOUT: b"", Stream.STDERR: b""}
    sequence, time_ns = 1, TIME_NS
    for _ in range(count):
        stream = source.choice((Stream.STDOUT, Stream.STDOUT, Stream.STDERR))
        payload = _random_payload(source)
        encoded.append(output(payload, sequence, stream=stream, time_ns=time_ns))
        expected[stream] += payload
        sequence += payload.count(b"\n") or 1
        time_ns += source.choice((0, 1, 1000, -500))
    return encoded, expected


def run_program(*command: str, data: bytes = b"") -> bytes:
    """Standard output of an ordinary program that must succeed."""
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def last_sequences(encoded: Sequence[bytes]) -> list[int]:
    """The last sequence of each record."""
    return [record.last_sequence for record in records(*encoded)]


def _random_payload(source: random.Random) -> bytes:
    pieces = (
        b"plain",
        b"\r",
        b"\x00",
        b"\xff\xfe",
        "\u2028 ü \U0001f600".encode(),
        b'"\\',
        b"\x1b[2J",
        b"",
        b"a" * 300,
    )
    text = b"".join(
        b"".join(source.choices(pieces, k=source.randrange(4))) + b"\n" for _ in range(source.randrange(1, 40))
    )
    return text if source.random() < 0.8 else text.replace(b"\n", b" ") or b"x"


def test_builders_make_records_that_ingest_accepts() -> None:
    """What the builders make passes the checks of ingest, and its sequences are without a hole."""
    encoded, _ = random_journal(random.Random(1), count=50)  # noqa: S311  # no secret
    expected = 1
    for record in records(*encoded):
        assert record.sequence == expected
        expected = record.last_sequence + 1
    assert records(gap(1, 5))[0].last_sequence == 5
    assert new_job_id() != new_job_id()
