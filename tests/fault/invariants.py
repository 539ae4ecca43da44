"""What must hold after every fault, looked at from outside: through rnx, the stored files, and the kernel.

Belongs here: the checks that tests of several faults share (I1-I4 and I8 of the threat catalogue), each exact. Does not
belong here: faults, and what a fault's own test expects beyond these. Nothing is repaired here, and a check only waits
where the promise is "soon".
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from cli.joblet.storedlog import STREAMS, verify_job
from tests.e2e.node import PROGRAMS, SERVICES, Node, read_all
from tests.fault.kills_logs import Follower, Log, answer, assert_same, shown, stored
from tests.leaks import children_of, command_of, mounts_below, own_groups, spare_ids
from tests.waiting import NeverHappened, wait_for

ENDED: Final = frozenset({"completed", "failed", "stopped", "timed_out", "lost", "canceled"})
RSS_BYTES_MAX: Final = {"volumes": 128 << 20, "persist": 512 << 20, "executor": 256 << 20, "api": 256 << 20}
"""The most that a service ever occupied, below any load of this suite."""
SPARES: Final = 2


def record_of(node: Node, job: str) -> dict[str, Any]:
    """The job's record."""
    done = answer(node, "--json", "job", "status", job)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ended(node: Node, job: str, *, timeout_s: float = 60.0) -> dict[str, Any]:
    """The record of the job when it has ended and persist has everything of it."""
    record = wait_for(
        lambda: (now := record_of(node, job))["state"] in ENDED and now, timeout_s=timeout_s, what=f"the end of {job}"
    )
    wait_for(lambda: not (node.base / "jobs" / job).exists(), timeout_s=timeout_s, what=f"{job} to be delivered")
    return record


# I1: the log


def check_log(node: Node, job: str) -> Log:
    """Every sequence once and in order, or in a gap that tells of it; rnx, the files and `joblet verify` agree."""
    log = shown(node, job)
    spans = sorted([(one.sequence, 1) for one in log.entries] + [(gap.first, gap.lines) for gap in log.gaps])
    expected = 1
    for first, count in spans:
        assert first == expected, f"{job}: sequence {first} where {expected} is due"
        expected += count
    assert [entry.sequence for entry in log.entries] == sorted(entry.sequence for entry in log.entries)
    assert stored(node, job) == log
    report = verify_job(node.base / "logs" / job)
    found = (report.lines, report.last_sequence, report.gap_entries, report.findings)
    assert found == (len(log.entries), log.last_sequence, sum(gap.lines for gap in log.gaps), [])
    return log


def check_whole(
    node: Node,
    job: str,
    expected: Mapping[str, bytes] | Callable[[bytes], Mapping[str, bytes]],
    *,
    follower: Follower | None = None,
) -> Log:
    """The same, without a gap, and the bytes of each stream are those that the job wrote.

    `expected` may be a function of what was found on stdout: Program.expected. A `follower` has the same bytes;
    without one they are printed once more.
    """
    log = check_log(node, job)
    assert log.gaps == ()
    found = log.streams
    written = expected(found["stdout"]) if callable(expected) else expected
    for stream in STREAMS:
        assert_same(found[stream], written[stream], f"{stream} of {job}")
    if follower is None:
        assert_same(answer(node, "job", "log", job, "--no-follow").stdout, log.merged, f"the raw log of {job}")
    else:
        follower.check(log)
    return log


# I2: one end


class Events:
    """What `joblet tap 'job.*'` prints while it runs, from some job of its own on. Close it."""

    def __init__(self, node: Node) -> None:
        command = [str(PROGRAMS / "joblet"), "tap", "job.*", "--base-dir", str(node.base), "--json"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._printed = read_all(self._process.stdout)
        # It does not say when it has subscribed; whose end came before would have none.
        wait_for(
            lambda: node.ok("job", "run", "--", "true") == b"" and self._printed.data,
            timeout_s=30,
            what="the tap to hear",
        )

    def of(self, job: str) -> list[dict[str, Any]]:
        """The events of one job so far, in order."""
        lines = self._printed.data.splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line.endswith(b"\n")]
        return [event for event in events if event["job"] == job]

    def check_end(self, record: Mapping[str, Any], *, once: bool) -> None:
        """Nothing follows the end of a job, and whoever was told of it was told what its record says.

        `once`: and exactly one event told it. Not asked for where the executor was killed at that moment: then it
        announces the end after its restart, whoever has heard it before.
        """
        job = str(record["id"])
        if once:
            wait_for(lambda: self._ends(job), what="the end event")
            assert len(self._ends(job)) == 1, self._ends(job)
            assert self.of(job)[-1]["state"] in ENDED, self.of(job)
        for event in self._ends(job):
            told = {key: event[key] for key in ("state", "exit_code", "signal")}
            assert told == {key: record[key] for key in ("state", "exit_code", "signal")}

    def _ends(self, job: str) -> list[dict[str, Any]]:
        return [event for event in self.of(job) if event["state"] in ENDED]

    def close(self) -> None:
        """Stop listening."""
        self._process.terminate()
        self._process.wait(30)
        self._printed.finished()


# I3, I4 and I8: what is there


class Traces(NamedTuple):
    """What a node has on its host now, without its spares."""

    directories: frozenset[str]
    groups: frozenset[str]
    mounts: frozenset[str]
    uploads: frozenset[str]
    processes: frozenset[str]
    """Jobs, by id, of which a process lives: a monitor, or anything in their groups."""


def traces(node: Node, jobs: Iterable[str]) -> Traces:
    """Everything that belongs to a job; `jobs` are all that the node ever had."""
    spares = spare_ids()
    listed = set(jobs)
    living: set[str] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            living |= listed & set(_marks_of(entry))
    return Traces(
        directories=frozenset(each.name for each in (node.base / "jobs").iterdir()) - spares,
        groups=frozenset(Path(group).name for group in own_groups()) - spares,
        mounts=mounts_below(node.base),
        uploads=frozenset(each.name for each in (node.base / "uploads").iterdir()),
        processes=frozenset(living),
    )


def check_traces(node: Node, *, timeout_s: float = 20.0) -> None:
    """RUNNING means a live process, a group and a directory; an ended job has none of them, and nothing else is there.

    But for as many spares as there may be. Looked at until it holds: a directory goes when persist has its journal.
    """

    def wrong() -> str:
        done = answer(node, "--json", "job", "list", "--all")
        assert done.returncode == 0, done.stderr
        states = {job["id"]: job["state"] for job in json.loads(done.stdout)}
        found = traces(node, states)
        running = frozenset(job for job, state in states.items() if state == "running")
        right = Traces(running, running, frozenset(), frozenset(), running)
        if found != right:
            return f"{found} and not {right}"
        # One that is of no use any more is there until it is removed.
        spares = {each.name for each in (node.base / "jobs").iterdir()} & spare_ids()
        return f"{len(spares)} spares: {spares}" if len(spares) > SPARES else ""

    _soon_nothing_is(wrong, timeout_s)


def check_services(node: Node) -> None:
    """Each service is there once, and occupies no more memory than it may."""
    for name in SERVICES:
        wait_for(lambda name=name: len(_pids_of(node, name)) == 1, timeout_s=30, what=f"one joblet-{name}")  # type: ignore[misc]
        (pid,) = _pids_of(node, name)
        peak = peak_rss_bytes(pid)
        assert peak <= RSS_BYTES_MAX[name], f"{name} occupied {peak >> 20} MiB"


def peak_rss_bytes(pid: int) -> int:
    """The most that the process ever occupied, VmHWM of proc(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[1]) << 10  # type: ignore[index]


def descriptors_of(pid: int) -> int:
    """How many descriptors the process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def alive(pid: int) -> bool:
    """Whether the process lives; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _soon_nothing_is(wrong: Callable[[], str], timeout_s: float) -> None:
    """Look until `wrong` says nothing; AssertionError with what it said last."""
    said = ""

    def right() -> bool:
        nonlocal said
        said = wrong()
        return not said

    try:
        wait_for(right, timeout_s=timeout_s, what="everything to be right")
    except NeverHappened as cause:
        raise AssertionError(said) from cause


def _pids_of(node: Node, name: str) -> list[int]:
    return [pid for pid in children_of(node.up_pid) if f"joblet-{name}" in command_of(pid)]


def _marks_of(entry: Path) -> list[str]:
    """Words by which a process can be a job's: the parts of its groups, and the words of its title."""
    try:
        if not alive(int(entry.name)):
            return []
        groups = (entry / "cgroup").read_text()
        title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*re.split(r"[/\n]", groups), *(title.split() if title.startswith("joblet-monitor") else ())]
