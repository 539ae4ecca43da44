"""How cost grows with the length of a log: writing it, and finding a place in it.

Belongs here: jobs of several sizes, one after the other. Does not belong here: what others do with the same output
(`logs.py`). A row carries its size; `charts.py` draws the series.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.client import Client
from benchmarks.logs import printed
from benchmarks.nodes import lines_file
from benchmarks.results import Row
from benchmarks.scale import Scale
from proto.joblet.v1 import job_pb2
from tests.e2e.node import Node

TAIL: Final = 100
ROUNDS: Final = 5
SAMPLE_S: Final = 0.05
MIB: Final = 2**20


def growth(node: Node, client: Client, scale: Scale) -> list[Row]:
    """For each size: lines a second, memory, the last lines, and the first byte of a query in the middle."""
    bystander = client.run("echo", "somebody else")
    return [row for size in scale.growth for row in _of_size(node, client, size, scale, bystander)]


def _of_size(node: Node, client: Client, size: int, scale: Scale, bystander: str) -> Iterator[Row]:
    file = lines_file(node, min(size, scale.log_lines))
    times, rest = divmod(size, scale.log_lines)
    assert rest == 0 or times == 0, "a longer job prints the whole file several times"
    command = f"i=0; while [ $i -lt {max(times, 1)} ]; do cat {file.name}; i=$((i+1)); done"
    with peaks({name: node.service(name) for name in ("persist", "executor")}) as memory:
        made = printed(node, client, command, file)

    def row(name: str, unit: str, ours: float) -> Row:
        return Row(name=name, unit=unit, ours=ours, size=size)

    yield row("log path to durable", "lines/s", size / made.to_durable_s)
    for name, most in memory.items():
        yield row(f"memory of {name}, most", "MiB", most / MIB)
    tail = job_pb2.StreamLogsRequest(job_id=made.job, tail=TAIL)
    yield row(f"the last {TAIL} lines", "ms", _repeated(lambda: _all_ms(client, tail, TAIL)))
    middle = job_pb2.StreamLogsRequest(job_id=made.job, from_sequence=size // 2)
    yield row("first byte from a sequence", "ms", _repeated(lambda: _first_ms(client, middle)))
    written_at = next(iter(client.stream(middle))).timestamp
    since = job_pb2.StreamLogsRequest(job_id=made.job, start_time=written_at)
    yield row("first byte from a time", "ms", _repeated(lambda: _first_ms(client, since)))
    # persist has forgotten what it knew of files. Its start and the api's way back to it are not what is measured.
    node.kill("persist")
    _until_served(client, bystander)
    yield row(f"the last {TAIL} lines, after a restart", "ms", _all_ms(client, tail, TAIL))


def _all_ms(client: Client, request: job_pb2.StreamLogsRequest, lines: int) -> float:
    began = time.perf_counter()
    got = sum(chunk.lines for chunk in client.stream(request))
    assert got == lines, f"{got} lines instead of {lines}"
    return (time.perf_counter() - began) * 1e3


def _first_ms(client: Client, request: job_pb2.StreamLogsRequest) -> float:
    began = time.perf_counter()
    for _ in client.stream(request):
        return (time.perf_counter() - began) * 1e3
    raise AssertionError("nothing in the middle of the log")


def _repeated(measure: Callable[[], float]) -> float:
    """The median of some rounds, behind one that does not count."""
    return statistics.median([measure() for _ in range(ROUNDS + 1)][1:])


def _until_served(client: Client, job: str) -> None:
    """Ask for the log of a job, which waits for persist."""
    assert sum(chunk.lines for chunk in client.output(job, follow=False)) == 1


@contextmanager
def peaks(pids: dict[str, int]) -> Iterator[dict[str, int]]:
    """The most that each process has resident (VmRSS) inside the block, bytes; complete when it has ended."""
    most = dict.fromkeys(pids, 0)
    over = threading.Event()

    def watch() -> None:
        while True:
            for name, pid in pids.items():
                most[name] = max(most[name], resident_bytes(pid))
            if over.wait(SAMPLE_S):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def resident_bytes(pid: int) -> int:
    """VmRSS of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
