"""The audit log of a node: complete over kills of the api, checked by the operator, read by admins."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.identities import authority_of, client_certificate, write_config
from tests.e2e.node import PROGRAMS, Node, Reader, end, read_all
from tests.waiting import SLOWNESS, wait_for


def verify(node: Node, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and reports of `joblet verify --audit`."""
    command = [str(PROGRAMS / "joblet"), "verify", "--audit", "--json", "--base-dir", str(node.base), *arguments]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60 * SLOWNESS)
    assert done.stderr == b""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def audit(node: Node, *arguments: str) -> list[dict[str, Any]]:
    """`rnx --json node audit` of an admin."""
    return [json.loads(line) for line in node.ok("--json", "node", "audit", *arguments).splitlines()]


def read_by(follower: Reader) -> list[int]:
    """Numbers of the lines that a follower has got whole."""
    whole, _, _ = follower.data.rpartition(b"\n")
    return [json.loads(line)["number"] for line in whole.splitlines()]


def as_(node: Node, directory: Path, who: str, role: str) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Gives rnx with a certificate of its own."""
    ca = authority_of(node.base / "certs")
    certificate, key = client_certificate(ca, names=(who,), organizations=(role,))
    directory = directory / who
    directory.mkdir()
    pem = (node.base / "certs" / "ca.crt").read_bytes()
    config = write_config(directory, port=node.port, ca=pem, certificate=certificate, key=key)

    def rnx(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [str(PROGRAMS / "rnx"), "--config", str(config), *arguments]
        return subprocess.run(command, capture_output=True, timeout=60 * SLOWNESS, check=False)

    return rnx


def test_one_chain_over_kills_of_the_api(own_node: Callable[..., Node], tmp_path: Path) -> None:
    """Calls of four roles, kill -9 in between, small files: verify is clean, admins and followers read all of it.

    A changed byte, and a log that was cut at its end, are found; no value of an argument or variable is in any file.
    """
    node = own_node({"joblet": {"audit": {"file_bytes_max": 4000, "files_kept": 200}}})
    callers = {role: as_(node, tmp_path, f"some-{role}", role) for role in ("writer", "user", "reader")}
    follower = node.background("--json", "node", "audit", "--follow")
    try:
        followed = read_all(follower.stdout)
        jobs = []
        for _ in range(3):
            run = callers["user"]("run", "-d", "--env", "TOKEN=hush-variable", "--", "true", "hush-argument")
            assert run.returncode == 0, run.stderr
            jobs.append(run.stdout.decode().strip())
            assert callers["reader"]("job", "stop", jobs[-1]).returncode == 4
            assert callers["writer"]("job", "wait", jobs[-1]).returncode == 0
            assert callers["reader"]("node", "audit").returncode == 4
            node.kill("api")
            node.ok("job", "run", "--", "true")  # repeated until the new one answers
        code, reports = verify(node)
        assert code == 0, reports
        api, persist = reports
        assert (api["source"], persist["source"]) == ("api", "persist")
        assert api["first_number"] == 1
        assert len(api["files"]) > 3
        entries = audit(node)
        assert [entry["number"] for entry in entries] == list(range(1, len(entries) + 1))
        told = [
            (entry["who"], entry["method"].rpartition("/")[2], entry["object"], entry["outcome"]) for entry in entries
        ]
        for job in jobs:
            assert told.count(("some-user", "RunJob", job, "allowed")) == 1
            assert told.count(("some-writer", "WaitJob", job, "allowed")) == 1
        assert told.count(("some-reader", "StopJob", "", "denied")) == 3
        assert told.count(("some-reader", "QueryAudit", "", "denied")) == 3
        assert {entry["who"] for entry in audit(node, "--outcome=denied")} == {"some-reader"}
        assert [entry["object"] for entry in audit(node, "--who=some-user", "--method=RunJob", "--tail=2")] == jobs[1:]
        last = entries[-1]["number"]
        wait_for(lambda: last in read_by(followed), timeout_s=30, what="the follower to have all")
        numbers = read_by(followed)[: len(entries)]
        assert numbers == list(range(1, len(entries) + 1)), "each once, over three kills"
    finally:
        end(follower)
    for path in (node.base / "audit").rglob("audit.jsonl*"):
        assert b"hush" not in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
    head = ("--source", "api", "--head", api["head"], "--head-number", str(api["last_number"]))
    assert verify(node, *head)[0] == 0
    victim = node.base / "audit" / api["files"][1]
    whole = victim.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    victim.write_bytes(changed)
    code, (report, _) = verify(node)
    assert (code, bool(report["findings"])) == (1, True)
    victim.write_bytes(whole)
    node.stop()
    assert verify(node)[0] == 0
    current = node.base / "audit" / "audit.jsonl"
    kept = {path: path.read_bytes() for path in (node.base / "audit").glob("audit.jsonl*")}
    for path in kept:
        if path.name.rpartition(".")[2].isdecimal():
            path.unlink()
    first = json.loads(current.read_bytes().splitlines()[0])["number"]
    assert verify(node)[0] == 0, "the oldest files may go"
    current.write_bytes(current.read_bytes().splitlines(keepends=True)[0])
    code, (report, _) = verify(node)
    assert (code, report["last_number"]) == (0, first)
    assert verify(node, "--source", "api", "--head-number", str(first + 1))[0] == 1


def test_what_persist_removed_is_read_by_admins_too(own_node: Callable[..., Node]) -> None:
    """Its lines come from persist, which alone can read them; while it is stopped the api's own are told."""
    retention = {"total_bytes": 1, "interval_ms": 500}
    node = own_node({"persist": {"storage": {"local": {"retention": retention}}}})
    job = node.ok("job", "run", "--detach", "--", "echo", "gone").decode().strip()
    removed = wait_for(lambda: audit(node, "--source=persist", "--object", job), timeout_s=30, what="the removal")
    (line,) = removed
    assert (line["source"], line["method"], line["outcome"], line["why"]) == (
        "persist",
        "retention",
        "removed",
        "total_bytes",
    )
    node.kill("persist")
    code, (_, report) = verify(node)
    assert (code, report["lines"]) == (0, 1)
    assert wait_for(
        lambda: node.rnx("node", "audit", "--source=persist").returncode == 0, timeout_s=30, what="persist to answer"
    )
