"""How long a line takes from write() in the job: to a client that follows, and until it is stored durably.

Belongs here: both, on a node at rest and beside jobs that print as fast as they can. Does not belong here: lines a
second (`logs.py`), crowds (`followers.py`). Each line is the time at which it was written.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.client import Client
from benchmarks.echo import echo_latencies_ms
from benchmarks.nodes import lines_file, measured_node
from benchmarks.results import Row, compared, percentile
from benchmarks.scale import Scale
from proto.joblet.v1 import job_pb2, persist_pb2
from tests.e2e.node import Node

WRITER: Final = (
    "import os, time\nfor _ in range({count}):\n    os.write(1, b'%d\\n' % time.time_ns())\n    time.sleep({pause_s})\n"
)
LIVE_PAUSE_S: Final = 0.005
QUIET_PAUSE_S: Final = 0.1
FLOOD_FILE_LINES: Final = 20_000
FLOOD_JOURNAL_BYTES: Final = 16 * 2**20
"""What a flooding job may have unstored: a hundred of them shall not fill the disk."""


def live(node: Node, client: Client, scale: Scale) -> list[Row]:
    """Until a gRPC client has it, beside a bare pipe into a gRPC server over the same TLS."""
    rest = _live_rows("live line", node, client, scale)
    with flooding(node, client, 1):
        beside = _live_rows("live line beside a flood", node, client, scale)
    p50, p99 = rest
    p99 = msgspec.structs.replace(p99, budget="≤ 20 ms", met=p99.ours <= 20)
    return [compared(msgspec.structs.replace(p50, budget="≤ 3 ×"), ratio_max=3.0), p99, *beside]


def _live_rows(name: str, node: Node, client: Client, scale: Scale) -> list[Row]:
    script = WRITER.format(count=scale.live_lines, pause_s=LIVE_PAUSE_S)
    job = client.run("/usr/bin/python3", "-I", "-S", "-c", script)
    ours = _ages_ms(client.output(job))
    theirs = echo_latencies_ms(node.base / "certs", script)
    return [
        compared(
            Row(
                name=f"{name}, p{percent}",
                unit="ms",
                ours=percentile(ours, percent),
                peer="pipe + gRPC echo",
                theirs=percentile(theirs, percent),
            )
        )
        for percent in (50, 99)
    ]


def acknowledgement(node: Node, client: Client, scale: Scale) -> list[Row]:
    """Until a client that waits for stored entries has it, with flooding jobs beside, which may not delay it.

    On a node of its own, whose journals are small.
    """
    del node, client
    rows: list[Row] = []
    with measured_node({"joblet": {"journal": {"bytes_max": FLOOD_JOURNAL_BYTES}}}) as (own, own_client):
        for floods in scale.floods:
            with flooding(own, own_client, floods):
                delays = _stored_ages_ms(own_client, scale.quiet_lines)
            name = f"a quiet job's line is stored, {floods} jobs flooding"
            rows += [
                Row(name=f"{name}, p50", unit="ms", ours=percentile(delays, 50)),
                Row(name=f"{name}, most", unit="ms", ours=max(delays), budget="≤ 1,000 ms", met=max(delays) <= 1000),
            ]
    return rows


def _stored_ages_ms(client: Client, count: int) -> list[float]:
    script = WRITER.format(count=count, pause_s=QUIET_PAUSE_S)
    job = client.run("/usr/bin/python3", "-I", "-S", "-c", script)
    query = persist_pb2.LogQueryRequest(job_id=job)
    return _ages_ms(client.batches(persist_pb2.LogBatchQueryRequest(query=query, until_sequence=count, wait=True)))


def _ages_ms(chunks: Iterable[job_pb2.LogChunk | persist_pb2.LogBatch]) -> list[float]:
    """Milliseconds from the writing of each line until now, when its chunk is here."""
    ages: list[float] = []
    for chunk in chunks:
        now = time.time_ns()
        ages += [(now - int(line)) / 1e6 for line in chunk.data.split()]
    return ages


@contextmanager
def flooding(node: Node, client: Client, count: int) -> Iterator[None]:
    """So many jobs that print one file over and over, each somewhere in it; stopped, and stored, at the end."""
    file = lines_file(node, FLOOD_FILE_LINES)
    jobs = [client.run("sh", "-c", f"while :; do cat {file.name}; done", upload=file) for _ in range(count)]
    try:
        for job in jobs:
            client.until_running(job)
            next(iter(client.output(job)))
        yield
    finally:
        for job in jobs:
            client.stop(job)
        _until_gone(node.base / "jobs" / job for job in jobs)


def _until_gone(directories: Iterable[Path]) -> None:
    for directory in directories:
        while directory.exists():
            time.sleep(0.01)
