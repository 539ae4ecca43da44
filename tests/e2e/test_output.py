"""A job's output and end, as its user sees them: every byte, each on its own stream, and the job's own exit code."""

import hashlib
import json
import shutil
import subprocess

import pytest

from common.quantities import format_time_ns
from tests.e2e.node import AT_GATE, GATE, Node, end, numbers
from tests.waiting import wait_for

MIB = 2**20
RANDOM_MIB = 1024
LINES = 2_000_000


@pytest.mark.requirement("S3.1")
@pytest.mark.requirement("S3.3")
@pytest.mark.requirement("T.3")
def test_streams_are_kept_apart_and_the_exit_code_is_the_jobs(node: Node) -> None:
    """Stdout comes on stdout, stderr on stderr, and rnx exits as the job did."""
    done = node.rnx("job", "run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)


@pytest.mark.requirement("S1.25")
def test_short_form(node: Node) -> None:
    """`rnx run` is `rnx job run`."""
    done = node.rnx("run", "echo", "hello")
    assert (done.stdout, done.returncode) == (b"hello\n", 0)


@pytest.mark.requirement("S2.4")
@pytest.mark.requirement("S2.3")
def test_end_by_a_signal(node: Node) -> None:
    """128+9 for the caller, signal 9 and no exit code in the record."""
    done = node.rnx("job", "run", "--name", "killed-by-nine", "--", "sh", "-c", "kill -9 $$")
    assert done.returncode == 137
    job = node.jobs("--limit", "1")[0]
    assert (job["name"], job["signal"], job["exit_code"], job["state"]) == ("killed-by-nine", 9, None, "failed")


def test_command_that_does_not_exist(node: Node) -> None:
    """FAILED with a reason that names the command; the attached caller fails and reads it too."""
    job = node.detached("--", "/no/such/program", "argument")
    record = node.wait_for_state(job, "failed")
    assert "/no/such/program" in record["reason"]
    assert record["exit_code"] is None
    done = node.rnx("job", "run", "--", "no-such-program-in-path")
    assert done.returncode != 0
    assert b"no-such-program-in-path" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_command_that_is_no_program(node: Node) -> None:
    """A directory cannot be executed: FAILED, and the reason says so."""
    record = node.wait_for_state(node.detached("--", "/usr"), "failed")
    assert "/usr" in record["reason"]


@pytest.mark.threat("C19")
@pytest.mark.requirement("T.3")
def test_random_bytes_come_back_unchanged(node: Node) -> None:
    """One GiB that the job makes itself: NUL, invalid UTF-8, lines of every length, none at the end."""
    script = f"mkfifo /tmp/f; sha256sum /tmp/f >&2 & head -c {RANDOM_MIB * MIB} /dev/urandom | tee /tmp/f; wait"
    with subprocess.Popen(
        node.command("job", "run", "--", "sh", "-c", script), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        digest, size = hashlib.sha256(), 0
        while chunk := run.stdout.read(MIB):
            digest.update(chunk)
            size += len(chunk)
        told = run.stderr.read()
    assert run.returncode == 0, told
    assert size == RANDOM_MIB * MIB
    assert told.split()[0].decode() == digest.hexdigest()
    job = node.jobs("--limit", "1")[0]["id"]
    wait_for(lambda: not (node.base / "jobs" / job).exists(), timeout_s=60, what="all of it to be stored")


@pytest.mark.requirement("S3.13")
@pytest.mark.requirement("S0.47")
def test_two_million_lines_live_and_stored(node: Node) -> None:
    """Complete and in order while the job runs, and the stored log is the same bytes."""
    live = node.ok("job", "run", "--name", "two-million", "--", "seq", str(LINES), timeout_s=100)
    expected = b"".join(b"%d\n" % number for number in range(1, LINES + 1))
    assert live == expected
    (job,) = node.jobs("--limit", "1")
    assert job["name"] == "two-million"
    assert node.ok("job", "log", job["id"], "--no-follow", timeout_s=100) == expected


@pytest.mark.threat("C19")
@pytest.mark.parametrize(
    "script",
    [
        r"printf 'no line end'",
        r"printf '\n\n\n'",
        r"printf 'a\0b\n\377\376\n'",
        r"printf 'crlf\r\nU+2028 \342\200\250 in a line\n'",
        "true",
        r"printf x; sleep 0.3; printf 'y\nz'",
        "head -c 300000 /dev/zero",
    ],
    ids=["no-end", "empty-lines", "nul", "crlf", "nothing", "slow-pieces", "one-long-line"],
)
def test_odd_output_is_exact(node: Node, script: str) -> None:
    """Live, and again from the store, byte for byte what the same script prints here."""
    expected = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    job = node.detached("--", "sh", "-c", script)
    assert node.ok("job", "log", job) == expected
    assert node.ok("job", "log", job, "--no-follow") == expected


@pytest.mark.threat("C21")
def test_output_cannot_forge_entries(node: Node) -> None:
    """A line that looks like a stored entry is content."""
    forged = '{"timestamp":1,"sequence":99,"stream":"stderr","content":"forged"}'
    job = node.detached("--", "echo", forged)
    node.ok("job", "wait", job)
    (entry,) = node.entries(job)
    assert (entry["content"], entry["sequence"], entry["stream"]) == (forged, 1, "stdout")


@pytest.mark.requirement("S2.7")
@pytest.mark.requirement("S3.16")
def test_late_follower_gets_everything_from_the_start(node: Node) -> None:
    """Who comes while the job runs gets what was, then what comes, without hole or repeat."""
    job = node.detached("--", "sh", "-c", "seq 1000; while [ ! -e /work/go ]; do sleep 0.05; done; seq 1001 2000")
    wait_for(lambda: len(node.entries(job)) == 1000, what="the first thousand lines to be stored")
    early = node.background("job", "log", job)
    late = node.background("job", "log", job, "--tail", "10")
    node.ok("job", "stop", job)
    for follower, first in ((early, 1), (late, 991)):
        out, err = follower.communicate(timeout=60)
        assert numbers(out) == list(range(first, 1001)), err


@pytest.mark.requirement("S0.48")
@pytest.mark.requirement("S0.49")
def test_views_of_a_stored_log(node: Node) -> None:
    """--stream, --filter, --tail, --from-seq, --limit and their combinations."""
    job = node.detached("--", "sh", "-c", "for i in 1 2 3 4 5 6; do echo line $i; echo ERROR $i >&2; done")
    node.ok("job", "wait", job)

    def view(*arguments: str) -> list[bytes]:
        return node.ok("job", "log", job, "--no-follow", *arguments).splitlines()

    errors = [b"ERROR %d" % i for i in range(1, 7)]
    assert view("--stream=stderr") == errors
    assert view("--stream", "stdout") == [b"line %d" % i for i in range(1, 7)]
    assert view("--filter=ERROR") == errors
    assert view("--filter=ERROR", "--stream=stdout") == []
    assert len(view("--tail", "3")) == 3
    assert len(view("--from-seq", "12")) == 1
    assert len(view("--limit", "4")) == 4
    assert len(view("--from-seq", "5", "--limit", "4")) == 4
    assert view("--grep=^ERROR [135]$") == [errors[0], errors[2], errors[4]]
    assert view("--grep=R [0-9]$", "--offset", "4") == errors[4:]
    assert view("--grep=R [0-9]$", "--offset", "1", "--limit", "2") == errors[1:3]
    assert view("--offset", "11") == view()[11:], "which stream was read last is the monitor's matter"
    assert view("--filter=ERROR", "--offset", "6") == []
    for refused in (("--grep", "("), ("--grep", "a", "--filter", "b"), ("--tail", "1", "--offset", "1")):
        done = node.rnx("job", "log", job, *refused)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1), refused


@pytest.mark.requirement("S0.45")
@pytest.mark.threat("C23")
def test_an_expression_and_an_offset_on_a_running_job(node: Node) -> None:
    """What is stored and what comes then are searched as one: offset and limit count over the seam."""
    script = "seq 1000; while [ ! -e /work/go ]; do sleep 0.05; done"
    job = node.detached("--", "sh", "-c", f"trap 'seq 1001 2000; exit 0' TERM; {script}")
    wait_for(lambda: len(node.entries(job)) == 1000, what="the first thousand lines to be stored")
    followers = [
        node.background("job", "log", job, "--grep", "(1|7)7$", "--offset", "15", "--limit", "10"),
        node.background("job", "log", job, "--grep", "(x+x+)+y"),
    ]
    node.ok("job", "stop", job)
    expected = [n for n in range(1, 2001) if n % 100 in (17, 77)][15:25]
    for follower, lines in zip(followers, (expected, []), strict=True):
        out, err = follower.communicate(timeout=60)
        assert numbers(out) == lines, err


def test_removed_output_is_told_at_once(node: Node) -> None:
    """Stored files that somebody removed: a gap on stderr in words, exit code 0, no wait for what will never come."""
    job = node.detached("--", "seq", "100")
    node.ok("job", "wait", job)
    wait_for(lambda: not (node.base / "jobs" / job).exists(), what="all of it to be stored")
    shutil.rmtree(node.base / "logs" / job)
    for arguments in ([], ["--no-follow"], ["--grep", "7"]):
        done = node.rnx("job", "log", job, *arguments)
        told = b"rnx: output is missing: entries 1 to 100 (100 entries): removed from the store: it was there once\n"
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", told), arguments


@pytest.mark.requirement("S0.50")
@pytest.mark.requirement("S0.53")
def test_times_of_a_stored_log(node: Node) -> None:
    """--since and --until take RFC 3339, durations back, and now; since is inclusive, until exclusive."""
    job = node.detached("--", "sh", "-c", f"{GATE}; echo first; {AT_GATE}; echo second")
    wait_for(lambda: node.entries(job), what="the first entry to have its time")
    node.open_gate(job)
    node.ok("job", "wait", job)
    first, second = node.entries(job)
    assert second["sequence"] == 2

    def contents(*arguments: str) -> list[str]:
        return [entry["content"] for entry in node.entries(job, *arguments)]

    assert contents("--since", "1h") == ["first", "second"]
    assert contents("--since", "now") == []
    assert contents("--until", "now") == ["first", "second"]
    assert contents("--until", "1h") == []
    moment = format_time_ns(second["timestamp"])
    assert contents("--since", moment) == ["second"]
    assert contents("--until", moment) == ["first"]
    assert first["timestamp"] < second["timestamp"]


def test_who_follows_the_samples_of_a_job_has_the_last_one(node: Node) -> None:
    """It is taken at the job's end and printed before that ends the command; asked later there is no other."""
    job = node.detached("--", "sleep", "1")
    follower = node.background("--json", "job", "metrics", "--follow", job)
    try:
        followed, _ = follower.communicate(timeout=60)
    finally:
        end(follower)
    ended_at = json.loads(node.ok("--json", "job", "status", job))["ended_at"]
    assert format_time_ns(json.loads(followed.splitlines()[-1])["timestamp"]) >= ended_at
    wait_for(lambda: node.ok("--json", "job", "metrics", job) == followed, what="the same of what is stored")
