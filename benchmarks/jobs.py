"""Jobs: how soon one starts, how many a second, and what memory stands beside them and in the services.

Belongs here: these measurements, from a running node to rows. Does not belong here: what jobs print (`logs.py`).
"""

import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import peers
from benchmarks.client import Client
from benchmarks.results import Row, compared, percentile
from benchmarks.scale import Scale
from tests.e2e.node import SERVICES, Node

MIB = 2**20
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
