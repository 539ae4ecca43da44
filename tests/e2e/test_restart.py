"""Jobs outlive every service: kill -9 of each, restarts of all, damaged files; nothing is lost or doubled."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.node import AT_GATE, GATE, Node, end, make_base, numbers, read_all
from tests.waiting import wait_for

COUNT = 400
COUNTING = f"i=0; while [ $i -lt {COUNT} ]; do i=$((i+1)); echo $i; sleep 0.01; done; exit 9"
ALL = list(range(1, COUNT + 1))


@pytest.fixture(scope="module")
def fragile() -> Iterator[Node]:
    """The node whose services are killed."""
    made = Node(make_base("fragile"))
    made.start()
    yield made
    made.remove()


def last_stored(node: Node, job: str) -> int:
    """The last sequence in the store; 0 when there is none or nobody to ask."""
    done = node.rnx("--json", "job", "log", job, "--no-follow", "--tail", "1")
    return int(done.stdout.split(b'"sequence":')[1].split(b",")[0]) if b'"sequence":' in done.stdout else 0


@pytest.mark.requirement("T.8")
@pytest.mark.requirement("S3.16")
@pytest.mark.threat("F01")
@pytest.mark.threat("F02")
@pytest.mark.parametrize("name", ["executor", "persist", "api"])
def test_kill_while_a_job_prints_numbers(fragile: Node, name: str) -> None:
    """The job does not notice; its follower resumes by itself; the stored log has every number once and in order."""
    job = fragile.detached("--", "sh", "-c", COUNTING)
    running = fragile.wait_for_state(job, "running")
    follower = fragile.background("job", "log", job)
    heard = read_all(follower.stdout)
    complaints = read_all(follower.stderr)
    try:
        wait_for(lambda: heard.data.count(b"\n") > 20, what="the follower to hear some lines")
        fragile.kill(name)
        wait_for(lambda: heard.data.count(b"\n") > 150, timeout_s=30, what="the follower to go on")
        fragile.kill(name)
        follower.wait(timeout=60)
        assert follower.returncode == 0, complaints.finished()
        assert numbers(heard.finished()) == ALL
        complaints.finished()
    finally:
        end(follower)
    assert fragile.rnx("job", "wait", job).returncode == 9
    record = fragile.status(job)
    assert (record["state"], record["exit_code"], record["pid"]) in (
        ("failed", 9, running["pid"]),
        ("failed", 9, None),
    )
    entries = fragile.entries(job)
    assert numbers(entries) == ALL
    assert [entry["sequence"] for entry in entries] == ALL


@pytest.mark.threat("F27")
def test_resume_at_a_sequence(fragile: Node) -> None:
    """A follower that was killed goes on by --from-seq without a hole or a repeat."""
    job = fragile.detached("--", "sh", "-c", COUNTING)
    first = fragile.background("job", "log", job)
    heard = read_all(first.stdout)
    wait_for(lambda: heard.data.count(b"\n") > 50, what="the follower to hear some lines")
    end_of_first = heard.data[: heard.data.rindex(b"\n") + 1]
    first.kill()
    first.communicate()
    got = numbers(end_of_first)
    rest = numbers(fragile.ok("job", "log", job, "--from-seq", str(len(got) + 1)))
    assert got + rest == ALL


@pytest.mark.threat("F07")
def test_job_that_ends_while_the_executor_is_dead(fragile: Node) -> None:
    """Its true end is known afterwards."""
    job = fragile.detached(
        "--", "sh", "-c", "echo begun; while [ ! -e /tmp/x ]; do sleep 0.1; n=$((n+1)); [ $n = 15 ] && exit 42; done"
    )
    fragile.wait_for_state(job, "running")
    stopped = fragile.service("executor")
    fragile.kill("executor")
    assert stopped != fragile.service("executor")
    assert fragile.rnx("job", "wait", job).returncode == 42
    assert fragile.ok("job", "log", job) == b"begun\n"


@pytest.mark.requirement("S0.2")
@pytest.mark.threat("F38")
def test_jobs_outlive_joblet_up(own_node: Callable[..., Node]) -> None:
    """SIGTERM ends the services and no job; the next start on the directory finds them with their true ends."""
    node = own_node()
    long = node.detached("--", "sh", "-c", "echo long; sleep 1000")
    when_told = "trap 'echo last; exit 33' USR1; echo short; while :; do sleep 0.1; done"
    ends_meanwhile = node.detached("--", "sh", "-c", when_told)
    pid = node.wait_for_state(long, "running")["pid"]
    told = node.wait_for_state(ends_meanwhile, "running")["pid"]
    journal = node.base / "jobs" / ends_meanwhile / "journal"
    wait_for(lambda: b"short\n" in journal.read_bytes(), what="the short job to wait for its signal")
    services = node.processes()
    assert node.stop() == 0
    os.kill(told, signal.SIGUSR1)
    assert Path(f"/proc/{pid}").exists()
    launched = {each for each in services if Path(f"/proc/{each}").exists()}
    wait_for(lambda: b"last\n" in journal.read_bytes(), what="the short job to write its last line")
    node.start()
    assert node.status(long)["pid"] == pid
    assert node.status(long)["state"] == "running"
    assert node.rnx("job", "wait", ends_meanwhile).returncode == 33
    assert node.ok("job", "log", ends_meanwhile) == b"short\nlast\n"
    node.ok("job", "stop", long, "--grace", "0s")
    assert node.rnx("job", "wait", long).returncode in (137, 143)
    assert node.ok("job", "log", long) == b"long\n"
    wait_for(lambda: not any(Path(f"/proc/{each}").exists() for each in launched), what="the old monitors to be gone")


@pytest.mark.threat("F03")
def test_killed_monitor_means_lost(fragile: Node) -> None:
    """Kill -9 of a job's monitor ends the job, and its record says LOST, within seconds."""
    job = fragile.detached("--", "sh", "-c", "echo before; sleep 1000")
    pid = fragile.wait_for_state(job, "running")["pid"]
    wait_for(lambda: last_stored(fragile, job) == 1, what="the line to be stored")
    init = parent_of(pid)
    os.kill(parent_of(init), signal.SIGKILL)
    record = fragile.wait_for_state(job, "lost")
    assert record["reason"]
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), what="the job to be gone")
    assert fragile.ok("job", "log", job, "--no-follow") == b"before\n"


def parent_of(pid: int) -> int:
    """The parent's process id on the host."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def ended_job(node: Node, lines: int = 50) -> tuple[str, Path]:
    """A job that printed numbers and ended, and its stored stdout."""
    job = node.detached("--", "seq", str(lines))
    node.ok("job", "wait", job)
    stored = node.base / "logs" / job / "stdout.log.gz"
    wait_for(lambda: last_stored(node, job) == lines, what="the log to be stored")
    return job, stored


@pytest.mark.threat("F12")
@pytest.mark.parametrize(
    "damage", [b"\x1f\x8b\x08\x04", b"garbage", bytes(5000)], ids=["torn-member", "words", "zeros"]
)
def test_corrupt_tail_of_a_stored_log(fragile: Node, damage: bytes) -> None:
    """What was whole is served before and after a restart of persist; the tail is cut off and told."""
    job, stored = ended_job(fragile)
    with stored.open("ab") as file:
        file.write(damage)
    assert numbers(fragile.ok("job", "log", job, "--no-follow")) == list(range(1, 51))
    fragile.kill("persist")
    wait_for(lambda: last_stored(fragile, job) == 50, timeout_s=30, what="persist to answer again")
    assert numbers(fragile.ok("job", "log", job, "--no-follow")) == list(range(1, 51))


@pytest.mark.threat("F12")
def test_stored_log_cut_in_the_middle(fragile: Node) -> None:
    """Half a file is served as far as it is whole, or refused in words; persist lives."""
    job, stored = ended_job(fragile)
    persist = fragile.service("persist")
    with stored.open("r+b") as file:
        file.truncate(stored.stat().st_size // 2)
    done = fragile.rnx("job", "log", job, "--no-follow")
    assert done.returncode == 0 or done.stderr.count(b"\n") == 1
    got = numbers(done.stdout)
    assert got == list(range(1, len(got) + 1))
    assert fragile.service("persist") == persist
    fragile.ok("job", "delete", job)


@pytest.mark.threat("F11")
def test_torn_journal_of_a_dead_monitor(own_node: Callable[..., Node]) -> None:
    """Half a record at the end of a journal whose monitor was killed: counted, ignored, and all before it is kept."""
    node = own_node()
    job = node.detached("--", "sh", "-c", "seq 20; sleep 1000")
    pid = node.wait_for_state(job, "running")["pid"]
    wait_for(lambda: last_stored(node, job) == 20, what="the lines to be stored")
    node.stop()
    monitor = parent_of(parent_of(pid))
    os.kill(monitor, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), what="the job to be gone")
    with (node.base / "jobs" / job / "journal").open("ab") as journal:
        journal.write(b"JLR1\x02\x01\x00\x00half a record")
    node.start()
    assert node.wait_for_state(job, "lost")["reason"]
    assert numbers(node.ok("job", "log", job, "--no-follow")) == list(range(1, 21))


@pytest.mark.threat("F20")
def test_persist_that_stands_still(fragile: Node) -> None:
    """While persist is stopped the job and its live followers go on; afterwards everything is stored, once."""
    persist = fragile.service("persist")
    job = fragile.detached(
        "--", "sh", "-c", f"{GATE}; seq 100; {AT_GATE}; go=; seq 101 {COUNT}; {AT_GATE}; seq {COUNT + 1} {2 * COUNT}"
    )
    pid = fragile.wait_for_state(job, "running")["pid"]
    follower = fragile.background("job", "log", job)
    heard = read_all(follower.stdout)
    try:
        # By then it has read what was stored before it came, for which it needs persist, and is live.
        wait_for(lambda: heard.data.count(b"\n") == 100, timeout_s=30, what="the follower to be live")
        os.kill(persist, signal.SIGSTOP)
        os.kill(pid, signal.SIGUSR1)
        wait_for(lambda: heard.data.count(b"\n") == COUNT, timeout_s=30, what="live lines without persist")
        os.kill(pid, signal.SIGUSR1)
        os.kill(persist, signal.SIGCONT)
        assert numbers(heard.finished()) == list(range(1, 2 * COUNT + 1))
    finally:
        os.kill(persist, signal.SIGCONT)
        end(follower)
    assert numbers(fragile.entries(job)) == list(range(1, 2 * COUNT + 1))


@pytest.mark.threat("F25")
def test_second_joblet_up_on_the_same_directory_is_refused(fragile: Node) -> None:
    """It says who holds the directory, and the first one is not disturbed."""
    second = Node(fragile.base)
    second.log = fragile.base / "second.log"
    with pytest.raises(AssertionError, match="joblet up said b''"):
        second.start()
    assert second.log_text().strip()
    assert fragile.ok("job", "run", "echo", "undisturbed") == b"undisturbed\n"
