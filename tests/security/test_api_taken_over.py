"""What a taken over api could reach, tried by a process that has just its user, its groups and no capability.

The api is the one process that strangers talk to. Whoever makes it run his code may ask the executor for jobs in any
owner's name, for that is its purpose; he must not come to what the others keep: files of jobs, records, keys, stored
output. Each attempt is made once as root, too, and must succeed there: a test that cannot fail proves nothing.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.e2e.node import Node
from tests.leaks import paths_below
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node")

INTRUDER: Final = r"""
import errno, json, os, socket, sys
def tried(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "ok"
def reading(path):
    return lambda: os.close(os.open(path, os.O_RDONLY))
def writing(path):
    return lambda: os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
def making(path):
    return lambda: os.close(os.open(path + "/intruder", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
def connecting(path):
    def attempt():
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
    return attempt
def signalling(pid):
    return lambda: os.kill(int(pid), 0)
def memory(pid):
    return lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
WAYS = {f.__name__: f for f in (reading, writing, making, connecting, signalling, memory)}
asked, rights = json.load(sys.stdin)
if rights is not None:
    uid, gid, groups = rights
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)  # with it all capabilities go: capabilities(7)
print(json.dumps([tried(WAYS[way](what)) for way, what in asked]))
"""


class Rights(NamedTuple):
    """Of a process."""

    uid: int
    gid: int
    groups: list[int]


class Scene(NamedTuple):
    """A node with a job that runs and has output in the store."""

    node: Node
    job: str


@pytest.fixture(scope="module")
def scene(node: Node) -> Iterator[Scene]:
    """A running job with stored output."""
    job = node.detached("--", "sh", "-c", "echo stored; sleep 600")
    try:
        node.wait_for_state(job, "running")
        wait_for((node.base / "logs" / job / "stdout.log.gz").exists, what="stored output")
        yield Scene(node, job)
    finally:
        node.ok("job", "stop", job, "--grace", "0s")
        node.wait_for_state(job, "stopped")


def rights_of(pid: int) -> Rights:
    """What the kernel says of a process; it must have no capability at all."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    assert {fields[name].strip() for name in fields if name.startswith("Cap")} == {"0" * 16}
    assert fields["NoNewPrivs"].strip() == "1"
    uids, gids = fields["Uid"].split(), fields["Gid"].split()
    assert len(set(uids)) == len(set(gids)) == 1
    return Rights(int(uids[0]), int(gids[0]), [int(group) for group in fields["Groups"].split()])


def attempts_of(scene: Scene) -> list[tuple[str, str]]:
    """Everything that belongs to others."""
    base, job = scene.node.base, scene.job
    directory, logs = base / "jobs" / job, base / "logs" / job
    others = [scene.node.service(name) for name in ("executor", "persist", "volumes")]
    return [
        ("reading", str(directory / "journal")),
        ("reading", f"/proc/{scene.node.status(job)['pid']}/root/work"),
        ("writing", str(directory / "journal")),
        ("writing", str(directory / "control")),
        ("making", str(base / "jobs")),
        ("reading", str(base / "state" / "jobs.db")),
        ("writing", str(base / "state" / "jobs.db")),
        ("making", str(base / "state")),
        ("reading", str(logs / "stdout.log.gz")),
        ("writing", str(logs / "stdout.log.gz")),
        ("making", str(logs)),
        ("making", str(base / "logs")),
        ("making", str(base / "metrics")),
        ("making", str(base / "audit" / "persist")),
        ("reading", str(base / "certs" / "server.key")),
        ("reading", str(base / "certs" / "ca.key")),
        ("making", str(base / "certs")),
        ("making", str(base / "run")),
        ("making", str(base)),
        ("writing", str(base / "joblet-config.yml")),
        ("connecting", str(base / "run" / "persist-ipc.sock")),
        ("connecting", str(base / "run" / "persist-acks.sock")),
        *(("signalling", str(pid)) for pid in others),
        *(("memory", str(pid)) for pid in others),
    ]


def tried(base: Path, attempts: list[tuple[str, str]], rights: Rights | None) -> list[str]:
    """What became of each attempt, with these rights; None: as root."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", INTRUDER],
        input=json.dumps([attempts, rights]).encode(),
        capture_output=True,
        check=True,
        cwd="/",
    )
    for made in (path for path in paths_below(base) if path.name == "intruder"):
        made.unlink()
    answers: list[str] = json.loads(done.stdout)
    return answers


@pytest.mark.threat("A32")
@pytest.mark.threat("B01")
def test_a_taken_over_api_comes_to_nothing_of_the_others(scene: Scene) -> None:
    """Files of jobs, records, keys, stored output, the way into the store, the other processes: all closed."""
    attempts = attempts_of(scene)
    as_root = tried(scene.node.base, attempts, None)
    assert [pair for pair in zip(attempts, as_root, strict=True) if pair[1] != "ok"] == []
    as_api = tried(scene.node.base, attempts, rights_of(scene.node.service("api")))
    assert [pair for pair in zip(attempts, as_api, strict=True) if pair[1] not in {"EACCES", "EPERM"}] == []


@pytest.mark.threat("A32")
def test_what_it_can_do_is_its_purpose(scene: Scene) -> None:
    """It can ask the executor, ask persist for history, hear events, and write its own audit log and uploads."""
    base = scene.node.base
    purposes = [
        ("connecting", str(base / "run" / "executor-commands.sock")),
        ("connecting", str(base / "run" / "persist-grpc.sock")),
        ("connecting", str(base / "run" / "events.sock")),
        ("writing", str(base / "audit" / "audit.jsonl")),
        ("making", str(base / "uploads")),
    ]
    assert tried(base, purposes, rights_of(scene.node.service("api"))) == ["ok"] * len(purposes)
