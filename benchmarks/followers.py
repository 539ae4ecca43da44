"""A thousand followers of one job that prints a thousand lines a second: what arrives, and what it costs.

Belongs here: this one measurement. Does not belong here: the crowd itself (`tests/fault/crowd.py`), which is one client
process on the same cores: what it uses is told beside what the node uses.
"""

import time
from pathlib import Path
from typing import Final

from benchmarks.client import Client
from benchmarks.results import Row, percentile
from benchmarks.scale import Scale
from tests.e2e.node import Node
from tests.fault.crowd_plan import Group, crowd
from tests.fault.waiting_jobs import start_waiting

LINES_A_SECOND: Final = 1000
WRITES_A_SECOND: Final = 100
PACED: Final = (
    "exec /usr/bin/python3 -I -S -c 'import os, time\n"
    "began = time.monotonic()\n"
    "for turn in range({turns}):\n"
    '    os.write(1, b"%090d handled\\n" % turn * {lines})\n'
    "    time.sleep(max(began + (turn + 1) / {rate} - time.monotonic(), 0))'"
)
ASK_PAUSE_S: Final = 0.05


def followers(node: Node, client: Client, scale: Scale) -> list[Row]:
    """Lines a second to all of them together, processor time of each side, and how others are answered meanwhile."""
    turns = scale.followed_s * WRITES_A_SECOND
    script = PACED.format(turns=turns, lines=LINES_A_SECOND // WRITES_A_SECOND, rate=WRITES_A_SECOND)
    job = start_waiting(node, script)
    answers: list[float] = []
    with crowd(node.config, Group(job=job.id, count=scale.followers)) as people:
        people.opened()
        pids = {name: node.service(name) for name in ("api", "executor", "persist")} | {"client": people.process.pid}
        before = {name: processor_s(pid) for name, pid in pids.items()}
        began = time.perf_counter()
        job.go()
        while not people.ready():
            asked = time.perf_counter()
            client.state(job.id)
            answers.append((time.perf_counter() - asked) * 1e3)
            time.sleep(ASK_PAUSE_S)
        seconds = time.perf_counter() - began
        used = {name: processor_s(pid) - before[name] for name, pid in pids.items()}
        heard = people.told().heard
    lines = scale.followed_s * LINES_A_SECOND + 1
    assert [each.entries for each in heard] == [lines] * scale.followers, "a follower has not got every line"
    who = f"{scale.followers:,} followers"
    return [
        Row(name=f"{who}, lines together", unit="lines/s", ours=lines * scale.followers / seconds),
        Row(name=f"{who}, end of the job to theirs", unit="s", ours=max(seconds - scale.followed_s, 0)),
        *(Row(name=f"{who}, processor time of {name}", unit="s/s", ours=each / seconds) for name, each in used.items()),
        Row(name=f"{who}, GetJob beside them, p50", unit="ms", ours=percentile(answers, 50)),
        Row(name=f"{who}, GetJob beside them, p99", unit="ms", ours=percentile(answers, 99)),
    ]


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process has used: utime and stime of proc(5), at 100 a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100
