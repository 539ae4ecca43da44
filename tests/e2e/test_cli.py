"""The command lines as scripts use them: lists, keys, waits, plans, exit codes, the tap, and the stored files."""

import json
import shutil
import signal
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.e2e.node import PROGRAMS, Node, end, read_all
from tests.waiting import SLOWNESS, wait_for

UNKNOWN = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
STATUS_KEYS = {
    *(
        "id",
        "name",
        "owner",
        "node_id",
        "state",
        "command",
        "args",
        "pid",
        "exit_code",
        "signal",
        "oom_killed",
        "reason",
    ),
    *("limits", "volumes", "network", "labels", "created_at", "started_at", "ended_at", "usage"),
    *("on_full", "lost_entries", "lost_bytes"),
}


def test_status_has_the_promised_keys(node: Node) -> None:
    """`--json` keys are a contract; usage is there when the job has ended."""
    job = node.detached("--name", "keys", "--label", "team=red", "--", "sh", "-c", "exit 3")
    node.rnx("job", "wait", job)
    record = node.status(job)
    assert set(record) >= STATUS_KEYS
    assert (record["id"], record["name"], record["owner"], record["node_id"]) == (
        job,
        "keys",
        "admin",
        "node-under-test",
    )
    assert (record["command"], record["args"], record["exit_code"]) == ("sh", ["-c", "exit 3"], 3)
    assert record["labels"] == {"team": "red"}
    assert record["usage"]["memory_peak_bytes"] > 0
    assert set(record["usage"]) >= {
        *("cpu_time_us", "memory_peak_bytes", "oom_kills", "io_read_bytes", "io_write_bytes", "io_read_ops"),
        *("io_write_ops", "network_rx_bytes", "network_tx_bytes"),
    }
    assert record["created_at"] <= record["started_at"] <= record["ended_at"]


def test_prefix_of_an_id(node: Node) -> None:
    """Eight characters name a job; seven are a usage error."""
    job = node.detached("--", "true")
    node.ok("job", "wait", job)
    assert node.status(job[:8])["id"] == job
    assert node.rnx("job", "status", job[:7]).returncode == 2


@pytest.mark.threat("D23")
def test_idempotency_key(node: Node) -> None:
    """The same key twice is one job; another key, or another user with the same key, is another."""
    key = uuid.uuid4().hex
    first = node.detached("--idempotency-key", key, "--", "true")
    assert node.detached("--idempotency-key", key, "--", "true") == first
    assert node.detached("--idempotency-key", key + "x", "--", "true") != first
    assert node.detached("--idempotency-key", key, "--", "true", node="user") != first
    for job in node.jobs("--limit", "3"):
        node.rnx("job", "wait", job["id"])


def test_list(node: Node) -> None:
    """Newest first, paged, filtered by state and label; --all gives all."""
    mark = uuid.uuid4().hex[:8]
    jobs = [
        node.detached("--label", f"mark={mark}", "--label", f"n={n}", "--", "sh", "-c", f"exit {n % 2}")
        for n in range(5)
    ]
    for job in jobs:
        node.rnx("job", "wait", job)
    assert [job["id"] for job in node.jobs("--label", f"mark={mark}")] == jobs[::-1]
    assert [job["id"] for job in node.jobs("--label", f"mark={mark}", "--limit", "2")] == jobs[:2:-1]
    assert [job["id"] for job in node.jobs("--label", f"mark={mark}", "--state", "failed")] == [jobs[3], jobs[1]]
    assert [job["id"] for job in node.jobs("--label", f"mark={mark}", "--label", "n=4")] == [jobs[4]]
    assert node.jobs("--label", f"mark={mark}", "--owner", "nobody") == []
    assert len(node.jobs("--all")) >= 5
    table = node.ok("job", "list", "--label", f"mark={mark}").decode().splitlines()
    assert len(table) == 6
    assert all(job in line for job, line in zip(jobs[::-1], table[1:], strict=True))


def test_wait_exits_as_the_job_did(node: Node) -> None:
    """Before and after its end."""
    job = node.detached("--", "sh", "-c", "sleep 0.5; exit 21")
    assert node.rnx("job", "wait", job).returncode == 21
    assert node.rnx("job", "wait", job).returncode == 21


@pytest.mark.parametrize("verb", ["status", "log", "stop", "wait", "delete"])
def test_unknown_job_is_3(node: Node, verb: str) -> None:
    """Not found, in one line on stderr."""
    done = node.rnx("job", verb, UNKNOWN)
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.count(b"\n") == 1


def test_node_that_is_not_there_is_5(node: Node, tmp_path: Path) -> None:
    """Unavailable, in one line that names the address."""
    config = tmp_path / "rnx-config.yml"
    config.write_text(node.config.read_text().replace(f"127.0.0.1:{node.port}", "127.0.0.1:1"))
    done = subprocess.run(
        [str(PROGRAMS / "rnx"), "--config", str(config), "--timeout", "2s", "job", "list"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 5, done
    assert b"127.0.0.1:1" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_usage_errors_are_2(node: Node) -> None:
    """Unknown option, command, context or missing argument."""
    for arguments in (
        ["job", "run"],
        ["job", "fly"],
        ["job", "list", "--fly"],
        ["job", "run", "--max-cpu", "fast", "x"],
    ):
        done = node.rnx(*arguments)
        assert (done.returncode, done.stdout) == (2, b""), arguments
    assert node.rnx("job", "list", node="no-such-context").returncode == 2


def test_dry_run(node: Node) -> None:
    """The plan is printed, one step a line, and nothing is started."""
    before = len(node.jobs("--all"))
    steps = node.ok("job", "run", "--dry-run", "--max-memory", "64", "--", "sh", "-c", "exit 1").decode().splitlines()
    assert len(steps) > 10
    assert any("pivot_root" in step for step in steps)
    assert any("/proc" in step for step in steps)
    assert "sh" in steps[-1] or "exec" in steps[-1]
    assert len(node.jobs("--all")) == before


@pytest.mark.requirement("S0.10")
@pytest.mark.requirement("S0.11")
@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_stored_files_are_plain_gzip_and_json(node: Node) -> None:
    """zcat, gzip -t and jq read them as they are."""
    job = node.detached("--", "sh", "-c", r"seq 1000; printf 'bad \377 byte\n'; echo err >&2")
    node.ok("job", "wait", job)
    directory = node.base / "logs" / job
    wait_for(lambda: len(node.entries(job)) == 1002, what="the log to be stored")
    for name in ("stdout", "stderr"):
        subprocess.run(["gzip", "-t", str(directory / f"{name}.log.gz")], check=True)
    program = "select(.content) | [.sequence, .stream, .content] | @tsv"
    text = subprocess.run(["zcat", str(directory / "stdout.log.gz")], capture_output=True, check=True).stdout
    rows = (
        subprocess.run(["jq", "-r", program], input=text, capture_output=True, check=True).stdout.decode().splitlines()
    )
    assert rows == [f"{number}\tstdout\t{number}" for number in range(1, 1001)]
    binary = [json.loads(line) for line in text.splitlines() if b"content_b64" in line]
    assert len(binary) == 1
    assert set(json.loads(text.splitlines()[0])) == {"timestamp", "sequence", "stream", "content"}


def test_tap(node: Node) -> None:
    """`joblet tap` shows states and output of jobs as they pass, as JSON lines."""
    tap = subprocess.Popen(
        [str(PROGRAMS / "joblet"), "tap", "*", "--base-dir", str(node.base), "--json"], stdout=subprocess.PIPE
    )
    reader = read_all(tap.stdout)
    try:

        def tapped() -> list[bytes]:
            job = node.detached("--", "echo", "tapped words")
            node.ok("job", "wait", job)
            whole, _, _ = reader.data.rpartition(b"\n")
            return [line for line in whole.splitlines() if job.encode() in line]

        def both() -> bool:
            found = [json.loads(line) for line in tapped()]
            words = any(each["type"] == "output" and each["content"] == "tapped words" for each in found)
            return words and any(each["type"] == "job" for each in found)

        wait_for(both, timeout_s=30, what="a job's state and output on the tap")
        tap.send_signal(signal.SIGINT)
        assert tap.wait(timeout=10 * SLOWNESS) in (0, 130)
    finally:
        end_with_reader(tap)


def end_with_reader(process: subprocess.Popen[bytes]) -> None:
    """Kill what runs; the reader closes the pipe by itself."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        end(process)


@pytest.mark.threat("C20")
def test_names_are_safe_to_print(node: Node) -> None:
    """A control character in an argument does not reach a terminal through status or list."""
    job = node.detached("--", "echo", "\x1b]0;owned\x07")
    node.ok("job", "wait", job)
    for shown in (
        node.ok("job", "status", job),
        node.ok("job", "list", "--limit", "1"),
        node.ok("--json", "job", "status", job),
    ):
        assert b"\x1b" not in shown
        assert b"\x07" not in shown


def test_help_has_an_example(node: Node) -> None:
    """Every command explains itself."""
    for command in (
        ["job", "run"],
        ["job", "list"],
        ["job", "log"],
        ["job", "status"],
        ["job", "stop"],
        ["job", "wait"],
    ):
        text = node.ok(*command, "--help").decode()
        assert "rnx job" in text.split("Usage:", 1)[1]
        assert "xample" in text


def test_node_info(node: Node) -> None:
    """What the node is and what it can enforce."""
    facts = json.loads(node.ok("--json", "node", "info"))
    assert facts["node_id"] == "node-under-test"
    assert facts["cgroup_version"] in ("v1", "v2", "hybrid")
    assert any(each["name"] == "limit.memory" for each in facts["capabilities"])
    assert facts["counters"]["api.records_corrupt"] == 0
    assert json.loads(node.ok("--json", "node", "info", node="user"))["counters"] == {}


def test_what_happens_when_it_is_full_is_shown(node: Node) -> None:
    """The node's default, or what the job was started with; nothing was lost of a small one."""
    for options, policy in (([], "block"), (["--on-full", "drop"], "drop")):
        job = node.detached(*options, "--", "true")
        node.ok("job", "wait", job)
        record = node.status(job)
        assert (record["on_full"], record["lost_entries"], record["lost_bytes"]) == (policy, 0, 0)
        assert f"on full:     {policy}\n" in node.ok("job", "status", job).decode()


@pytest.mark.requirement("S0.61")
def test_processes_have_names(node: Node) -> None:
    """`ps` shows each service by its name."""
    for name in ("api", "executor", "persist", "volumes"):
        assert b"joblet-" + name.encode() in Path(f"/proc/{node.service(name)}/cmdline").read_bytes()
        assert Path(f"/proc/{node.service(name)}/comm").read_text().strip() == f"joblet-{name}"[:15]
