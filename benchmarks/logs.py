"""Output on its way to the disk, and from there to a client, beside programs that keep and read plain text.

Belongs here: these measurements, from a running node to rows. Does not belong here: the peers' command lines
(`peers.py`), latency (`latency.py`), jobs of other sizes (`growth.py`). All are given the same file (`lines.py`) in
turns, ours and each peer's once a round, so that what else the machine does falls on all of them.
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import peers
from benchmarks.client import Client
from benchmarks.lines import LINE_BYTES, RARE_EVERY, RARE_PATTERN, RARE_TEXT
from benchmarks.nodes import lines_file
from benchmarks.results import Row, compared, rates
from benchmarks.scale import Scale
from proto.joblet.v1 import job_pb2, persist_pb2
from tests.e2e.node import Node

POLL_S: Final = 0.005
WRITTEN_MIN: Final = 350_000
READ_MIN: Final = 500_000
"""Lines a second, whatever the peers do."""


class Printed(NamedTuple):
    """A job that printed a file, and how long it took from its first instruction on."""

    job: str
    to_end_s: float
    to_durable_s: float


def printed(node: Node, client: Client, command: str, upload: Path) -> Printed:
    """Run a shell command until all it prints is stored and acknowledged: then the job's directory is gone."""
    job = client.run("sh", "-c", command, upload=upload)
    ended = client.wait(job)
    assert ended.exit_code == 0, ended
    while (node.base / "jobs" / job).exists():
        time.sleep(POLL_S)
    began_s = ended.started_at.ToNanoseconds() / 1e9
    return Printed(job, ended.ended_at.ToNanoseconds() / 1e9 - began_s, time.time() - began_s)


def log_path(node: Node, client: Client, scale: Scale) -> list[Row]:
    """One job's stdout until all of it is durable and acknowledged."""
    file = lines_file(node, scale.log_lines)
    runs: list[Printed] = []
    theirs: dict[str, list[float]] = {name: [] for name in peers.LOGGERS}
    for _ in range(scale.rounds):
        os.sync()  # nobody pays for what was written before him
        runs.append(printed(node, client, f"cat {file.name}", file))
        for name, seconds_of in peers.LOGGERS.items():
            os.sync()
            seconds = seconds_of(file)
            theirs[name] += [] if seconds is None else [scale.log_lines / seconds]
    ours = [scale.log_lines / run.to_durable_s for run in runs]
    budget = f"≥ 0.5 ×, {WRITTEN_MIN:,}/s"
    rows = [
        compared(
            rates("log path to durable", "lines/s", ours, peer=name, theirs=figures, budget=budget),
            ratio_min=0.5,
            ours_min=WRITTEN_MIN,
        )
        for name, figures in theirs.items()
    ]
    saw = [scale.log_lines / run.to_end_s for run in runs]
    stored = (node.base / "logs" / runs[-1].job / "stdout.log.gz").stat().st_size
    return [
        *rows,
        rates("log path, what the job itself saw", "lines/s", saw),
        compared(
            Row(
                name="output beside its stored size",
                unit="times",
                ours=scale.log_lines * LINE_BYTES / stored,
                peer="gzip -1",
                theirs=scale.log_lines * LINE_BYTES / peers.gzipped_bytes(file),
            )
        ),
    ]


def reading(node: Node, client: Client, scale: Scale) -> list[Row]:
    """A stored log to a client over gRPC and mutual TLS, whole and filtered, beside programs that read its file."""
    file = lines_file(node, scale.log_lines)
    job = printed(node, client, f"cat {file.name}", file).job
    stored = node.base / "logs" / job / "stdout.log.gz"
    rare = len(range(RARE_EVERY // 2, scale.log_lines, RARE_EVERY))
    whole = persist_pb2.LogBatchQueryRequest(query=persist_pb2.LogQueryRequest(job_id=job))
    cases = (
        Case(
            "stored log by StreamLogs", 0.2, scale.log_lines, lambda: client.output(job, follow=False), "zcat | wc -l"
        ),
        Case("stored log by QueryLogBatches", 0.2, scale.log_lines, lambda: client.batches(whole), "zcat | wc -l"),
        Case(
            "one line in 10,000 by filter",
            1.0,
            rare,
            lambda: client.stream(job_pb2.StreamLogsRequest(job_id=job, filter=RARE_TEXT)),
            f"zgrep -c '{RARE_TEXT}'",
        ),
        Case(
            "one line in 10,000 by regex",
            1.0,
            rare,
            lambda: client.stream(job_pb2.StreamLogsRequest(job_id=job, regex=RARE_PATTERN)),
            f"zgrep -cE '{RARE_PATTERN}'",
        ),
    )
    return [_compared(case, stored, scale) for case in cases]


class Case(NamedTuple):
    """A query that must give `lines` lines, and the shell command that gives their number."""

    name: str
    ratio_min: float
    lines: int
    ask: Callable[[], Iterable[job_pb2.LogChunk | persist_pb2.LogBatch]]
    peer: str


def _compared(case: Case, stored: Path, scale: Scale) -> Row:
    ours, theirs = [], []
    for _ in range(scale.rounds):
        began = time.perf_counter()
        lines = sum(chunk.lines for chunk in case.ask())
        ours.append(scale.log_lines / (time.perf_counter() - began))
        assert lines == case.lines, f"{case.name}: {lines} lines instead of {case.lines}"
        counted, seconds = peers.counted(case.peer, stored)
        theirs.append(scale.log_lines / seconds)
        assert counted == case.lines, f"{case.peer}: {counted} lines instead of {case.lines}"
    ours_min = READ_MIN if case.ratio_min < 1 else 0
    budget = f"≥ {case.ratio_min:g} ×" + (f", {ours_min:,}/s" if ours_min else "")
    program = case.peer if case.ratio_min < 1 else case.peer.split("'")[0].strip()
    return compared(
        rates(case.name, "lines/s", ours, peer=program, theirs=theirs, budget=budget),
        ratio_min=case.ratio_min,
        ours_min=ours_min,
    )
