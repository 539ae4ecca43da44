"""The measurements of architecture.md §10, each ours and its peer's in one go.

Belongs here: one function a measurement, from a running node to rows. Does not belong here: the peers' command lines
(`peers.py`), our calls (`client.py`), the echo (`echo.py`). Budgets are told with the numbers; nothing asserts them.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks import peers
from benchmarks.client import Client
from benchmarks.echo import echo_latencies_ms
from benchmarks.results import Row, compared, percentile
from tests.e2e.node import SERVICES, Node

LINE = "x" * 99
"""100 bytes with its line end."""
MIB = 2**20


class Scale(NamedTuple):
    """How much of everything: the full run, or a quick one that only shows that all of it works."""

    starts: int = 40
    jobs: int = 320
    clients: int = 16
    log_lines: int = 2_000_000
    query_lines: int = 5_000_000
    live_lines: int = 500
    sleepers: int = 20


QUICK = Scale(starts=5, jobs=32, log_lines=100_000, query_lines=200_000, live_lines=50, sleepers=5)


REST_S = 0.2
"""Between two starts."""


def start_latency(node: Node, client: Client, scale: Scale) -> list[Row]:
    """From the call of RunJob over mutual TLS until the job's first instruction: it prints the time at once.

    On a node at rest, ours and theirs: what a start costs when there is no rest is `job_rate`'s to tell.
    """
    ours = []
    for _ in range(scale.starts):
        time.sleep(REST_S)
        began = time.time()
        job = client.run("date", "+%s%N")
        told = b"".join(chunk.data for chunk in client.output(job))
        ours.append((int(told) / 1e9 - began) * 1e3)
    del node
    theirs = None
    if peers.installed("runc"):
        with peers.bundle("date", "+%s%N") as made:
            runs = []
            for _ in range(scale.starts):
                time.sleep(REST_S)
                runs.append(made.run())
            theirs = statistics.median((int(told) / 1e9 - began) * 1e3 for began, _, told in runs)
    row = Row(
        name="job start, median",
        unit="ms",
        ours=statistics.median(ours),
        peer="runc run",
        theirs=theirs,
        budget="≤ 0.5 ×",
    )
    rows = [compared(row, ratio_max=0.5)]
    return [*rows, Row(name="job start, p95", unit="ms", ours=percentile(ours, 95))]


def job_rate(node: Node, client: Client, scale: Scale) -> list[Row]:
    """Isolated `true` jobs from the call to their known end, by many clients at once."""
    del node

    def one(_: int) -> None:
        ended = client.wait(client.run("true"))
        assert ended.exit_code == 0

    ours = _rate(one, scale.jobs, scale.clients)
    theirs = None
    if peers.installed("runc"):
        with peers.bundle("true") as made:
            theirs = _rate(lambda _: made.run(), scale.jobs, scale.clients)
    row = Row(
        name=f"jobs a second, {scale.clients} clients",
        unit="1/s",
        ours=ours,
        peer="runc run",
        theirs=theirs,
        budget="≥ 2 ×",
    )
    return [compared(row, ratio_min=2.0)]


def _rate(one: Callable[[int], object], count: int, at_once: int) -> float:
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        began = time.perf_counter()
        list(pool.map(one, range(count)))
        return count / (time.perf_counter() - began)


def log_path(node: Node, client: Client, scale: Scale) -> list[Row]:
    """One job's stdout until all of it is durable and acknowledged: then its directory is gone."""
    began = time.perf_counter()
    job = client.run("sh", "-c", f"yes {LINE} | head -n {scale.log_lines}")
    directory = node.base / "jobs" / job
    client.wait(job)
    ended = time.perf_counter() - began
    while directory.exists():
        time.sleep(0.005)
    ours = scale.log_lines / (time.perf_counter() - began)
    rows = []
    for name, command in (("multilog t", ("multilog", "t")), ("s6-log t", ("s6-log", "t"))):
        theirs = None
        if peers.installed(command[0]):
            theirs = scale.log_lines / peers.logger_seconds(command, scale.log_lines, LINE)
        row = Row(name="log path to durable", unit="lines/s", ours=ours, peer=name, theirs=theirs, budget="≥ 0.5 ×")
        rows.append(compared(row, ratio_min=0.5))
    return [*rows, Row(name="log path, what the job itself saw", unit="lines/s", ours=scale.log_lines / ended)]


def query(node: Node, client: Client, scale: Scale) -> list[Row]:
    """A stored log to a client over gRPC, against zcat of the same file."""
    job = client.run("sh", "-c", f"yes {LINE} | head -n {scale.query_lines}")
    client.wait(job)
    while (node.base / "jobs" / job).exists():
        time.sleep(0.005)
    began = time.perf_counter()
    lines = sum(chunk.lines for chunk in client.output(job, follow=False))
    ours = lines / (time.perf_counter() - began)
    assert lines == scale.query_lines
    file = node.base / "logs" / job / "stdout.log.gz"
    began = time.perf_counter()
    counted = subprocess.run(["sh", "-c", f"zcat '{file}' | wc -l"], check=True, capture_output=True).stdout
    theirs = int(counted) / (time.perf_counter() - began)
    row = Row(
        name="stored log to a client",
        unit="lines/s",
        ours=ours,
        peer="zcat | wc -l",
        theirs=theirs,
        budget="≥ 0.2 ×, 500,000/s",
    )
    judged = compared(row, ratio_min=0.2)
    rows = [judged]
    return [*rows, Row(name="stored log on disk", unit="bytes/line", ours=file.stat().st_size / lines)]


WRITER = (
    "import os, time\nfor _ in range({count}):\n    os.write(1, b'%d\\n' % time.time_ns())\n    time.sleep(0.005)\n"
)


def live_latency(node: Node, client: Client, scale: Scale) -> list[Row]:
    """From write() in the job until the client has the line; each line is the time at which it was written."""
    script = WRITER.format(count=scale.live_lines)
    ours = []
    job = client.run("/usr/bin/python3", "-I", "-S", "-c", script)
    for chunk in client.output(job):
        now = time.time_ns()
        ours += [(now - int(line)) / 1e6 for line in chunk.data.split()]
    theirs = echo_latencies_ms(node.base / "certs", script)
    rows = []
    for percent, limit in ((50, 3.0), (99, None)):
        row = Row(
            name=f"live line, p{percent}",
            unit="ms",
            ours=percentile(ours, percent),
            peer="pipe + gRPC echo",
            theirs=percentile(theirs, percent),
            budget="≤ 3 ×" if limit else "≤ 20 ms",
            met=None if limit else percentile(ours, percent) <= 20,
        )
        rows.append(compared(row, ratio_max=limit))
    return rows


def job_memory(node: Node, client: Client, scale: Scale) -> list[Row]:
    """PSS of what stands beside each running job: its monitor and the init of its namespace."""
    jobs = [client.run("sleep", "1000") for _ in range(scale.sleepers)]
    for job in jobs:
        client.until_running(job)
    total = 0
    for job in jobs:
        status = json.loads(node.ok("--json", "job", "status", job))
        init = _parent(status["pid"])
        total += peers.pss_bytes(init) + peers.pss_bytes(_parent(init))
    for job in jobs:
        client.stop(job)
    theirs = peers.conmon_memory_bytes(scale.sleepers)
    row = Row(
        name="memory beside a running job",
        unit="MiB",
        ours=total / scale.sleepers / MIB,
        peer="conmon",
        theirs=None if theirs is None else theirs / MIB,
        budget="≤ 2 ×, ≤ 2 MiB",
    )
    return [compared(row, ratio_max=2.0)]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def service_memory(node: Node, client: Client, scale: Scale) -> list[Row]:
    """PSS of the four services (without the launcher, 2 MiB more), of the node as the other measurements left it."""
    del client, scale
    rows = [
        Row(name=f"memory of {name}", unit="MiB", ours=peers.pss_bytes(node.service(name)) / MIB) for name in SERVICES
    ]
    total = sum(row.ours for row in rows)
    return [
        *rows,
        Row(name="memory of the services together", unit="MiB", ours=total, budget="≤ 200 MiB", met=total <= 200),
    ]


MEASURES: dict[str, Callable[[Node, Client, Scale], list[Row]]] = {
    "services": service_memory,
    "start": start_latency,
    "rate": job_rate,
    "live": live_latency,
    "memory": job_memory,
    "log": log_path,
    "query": query,
}
