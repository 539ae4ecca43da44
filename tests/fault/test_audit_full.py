"""No room for the audit log of a node that works: calls go on, the log says later what is missing in it."""

import json
import subprocess

import pytest

from tests.e2e.node import PROGRAMS, Node
from tests.fault.disks_filesystems import MIB, small_tmpfs
from tests.fault.disks_nodes import based, needs_root, started
from tests.waiting import wait_for

pytestmark = [needs_root, pytest.mark.timeout(300)]


def verified(node: Node) -> tuple[int, dict[str, object]]:
    """Exit code and what `joblet verify --audit` says of the api's log."""
    command = [str(PROGRAMS / "joblet"), "verify", "--audit", "--json", "--source=api", "--base-dir", str(node.base)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.threat("F13")
@pytest.mark.parametrize("killed", [False, True])
def test_no_room_for_the_audit_log(*, killed: bool) -> None:
    """Nobody is locked out; lines are in the service's log; with room again the log has how many, and when.

    A killed api cannot say how many: what the file has is whole, and goes on.
    """
    with based("audit-full") as node:
        where = node.base / "audit"
        with small_tmpfs(where, 2 * MIB) as disk, started(node):
            node.jobs()
            disk.fill()
            lost = "audit line not written"

            def filled() -> int:
                node.jobs()  # what is left of the last block is written first
                return node.log_text().count(lost) >= 3

            wait_for(filled, timeout_s=60, what="lines that cannot be written")
            job = node.detached("--", "true")
            assert node.wait_for_state(job, "completed")["id"] == job
            if killed:
                node.kill("api")
                node.ok("job", "run", "--", "true")
            disk.give_room()
            node.jobs()
            code, report = verified(node)
            assert (code, report["findings"]) == (0, [])
            current = (where / "audit.jsonl").read_bytes().splitlines()
            told = [json.loads(line) for line in current if line.startswith(b'{"number"') and line.endswith(b"}")]
            assert told[-1]["outcome"] == "allowed"
            (missing,) = [line for line in told if line["kind"] == "missing"]
            assert missing["lines"] == report["missing"]
            if not killed:
                in_log = wait_for(
                    lambda: (count := node.log_text().count(lost)) >= missing["lines"] and count,
                    what="all that is missing to be in the service's log",
                )
                assert missing["lines"] == in_log
                assert missing["first"] <= missing["last"] <= missing["time"]
