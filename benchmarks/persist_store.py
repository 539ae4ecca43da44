"""Lines per second of persist's own steps, without processes and sockets: encode and compress, store, query.

Run: `python -m benchmarks.persist_store`. Lines have 100 bytes, line end included; one in 10,000 has RARE in it.
`zgrep -c` of the same file stands beside the searches. Not here: the whole log path.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from common.config.settings import Local
from common.identifiers import JobId, new_job_id
from common.matching import matcher
from common.records import Record, RecordType, Stream, decode_all, encode
from services.persist import lines, member
from services.persist.disk import HostDisk
from services.persist.index import Bounds
from services.persist.reader import LogReader
from services.persist.selection import LogSelection
from services.persist.store import Store

RECORDS: Final = 100
LINES: Final = 10_000
"""Of one record: a read of 1 MB by the monitor."""
ROUNDS: Final = 5
RARE: Final = "needle-xyz"
QUERIES: Final = (
    ("query", "", ""),
    ("filter, 1 line in 10,000", RARE, ""),
    ("filter, 1 line in 16", "worker-07", ""),
    ("filter, every line", "INFO", ""),
    ("expression with a text in it, 1 in 10,000", "", "needle-[a-z]+"),
    ("expression without, 1 in 10,000", "", "(needle|pin)-xyz"),
)


def journal() -> list[Record]:
    """Records as a busy job makes them."""
    template = b"2024-01-01T00:00:%02d.%06d INFO worker-%02d %s request id=%08x path=/api/v1/things/%05d status=200"
    encoded = []
    for record in range(RECORDS):
        first = record * LINES
        rows = (
            template
            % (
                n // 10**6,
                n % 10**6,
                n % 16,
                RARE.encode() if n % 10_000 == 77 else b"handled",
                n * 2654435761 % 2**32,
                n % 99_991,
            )
            for n in range(first, first + LINES)
        )
        payload = b"".join(row[:99].ljust(99, b".") + b"\n" for row in rows)
        encoded.append(
            encode(
                RecordType.OUTPUT,
                payload,
                time_ns=10**18 + record,
                sequence=first + 1,
                lines=LINES,
                stream=Stream.STDOUT,
            )
        )
    return list(decode_all(b"".join(encoded)))


def encode_and_compress(records: list[Record], level: int) -> int:
    """What a flush computes; bytes of all members."""
    return sum(len(member.build(c.text, c.span, level=level)) for record in records for c in lines.encode(record))


def store_all(store: Store, records: list[Record]) -> JobId:
    """All records as a new job, in flushes of 4 MB; the job."""
    job = new_job_id()
    for first in range(0, RECORDS, 4):
        batch = records[first : first + 4]
        store.write(job, batch, through=batch[-1].last_sequence, end=None)
    return job


def query(store: Store, job: JobId, text: str, pattern: str) -> int:
    """Everything that contains `text`, or that `pattern` matches; the runs."""
    found = matcher(text=text, pattern=pattern)
    wanted = LogSelection(job, (Stream.STDOUT, Stream.STDERR), Bounds(), found, None, 0, None, wait=False)
    return sum(len(step) for step in LogReader(store, wanted).steps(store.view(job)))


def zgrep(path: Path) -> None:
    """What one would do without us."""
    subprocess.run(["zgrep", "-c", RARE, str(path)], check=True, stdout=subprocess.DEVNULL)  # a peer


def rate(work: Callable[[], object]) -> float:
    """Lines per second, the best of some rounds."""
    best = 0.0
    for _ in range(ROUNDS):
        started_at = time.perf_counter()
        work()
        best = max(best, RECORDS * LINES / (time.perf_counter() - started_at))
    return best


def main() -> None:
    """Measure and print a table."""
    records = journal()
    rows = [("encode", rate(lambda: [chunk for record in records for chunk in lines.encode(record)]))]
    for level in range(4):
        rows.append((f"encode and compress, level {level}", rate(partial(encode_and_compress, records, level))))
    for durability in ("flush", "fsync"):
        with tempfile.TemporaryDirectory() as name:
            base = Path(name)
            (base / "logs").mkdir()
            settings = msgspec.convert({"durability": durability}, Local)
            store = Store(logs=base / "logs", metrics=base, settings=settings, disk=HostDisk())
            rows.append((f"store, {durability}", rate(partial(store_all, store, records))))
            job = store_all(store, records)
            rows += [(title, rate(partial(query, store, job, text, pattern))) for title, text, pattern in QUERIES]
            if shutil.which("zgrep"):
                rows.append(("zgrep -c, 1 line in 10,000", rate(partial(zgrep, base / "logs" / job / "stdout.log.gz"))))
    for title, lines_per_s in rows:
        print(f"{title:42} {lines_per_s:12,.0f} lines/s")  # noqa: T201  # this is its output


if __name__ == "__main__":
    main()
