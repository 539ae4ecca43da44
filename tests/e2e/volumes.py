"""What the tests of volumes ask of a node: through rnx, one line each. Not here: what should come out."""

import json
from typing import Any, Final

from tests.e2e.node import Node
from tests.waiting import wait_for

MIB: Final = 2**20


def create(node: Node, name: str, size: str = "16MB", *options: str, who: str = "default") -> str:
    """A new volume's id."""
    return node.ok("volume", "create", name, f"--size={size}", *options, node=who).decode().strip()


def inspect(node: Node, name: str, *, who: str = "default") -> dict[str, Any]:
    """`rnx --json volume inspect`."""
    found: dict[str, Any] = json.loads(node.ok("--json", "volume", "inspect", name, node=who))
    return found


def names(node: Node, *options: str, who: str = "default") -> list[str]:
    """Of `rnx volume list`, in its order."""
    return [volume["name"] for volume in json.loads(node.ok("--json", "volume", "list", *options, node=who))]


def run(node: Node, volume: str, script: str, *options: str, who: str = "default") -> bytes:
    """What a shell script in a job prints that has the volume."""
    return node.ok("job", "run", "--volume", volume, *options, "--", "/bin/sh", "-c", script, node=who)


def running(node: Node, volume: str, script: str, *options: str, who: str = "default") -> str:
    """A job that has the volume and has begun to run."""
    job = node.detached("--volume", volume, *options, "--", "/bin/sh", "-c", script, node=who)
    node.wait_for_state(job, "running")
    return job


def stop(node: Node, *jobs: str) -> None:
    """Kill them, and wait for their ends."""
    for job in jobs:
        node.rnx("job", "stop", job, "--signal", "KILL", "--grace", "0s")
    for job in jobs:
        node.wait_for_state(job, "stopped", "completed", "failed")


def free(node: Node, name: str, *, who: str = "default") -> dict[str, Any]:
    """The volume, when no job has it any more."""
    return wait_for(
        lambda: not (now := inspect(node, name, who=who))["uses"] and now,
        timeout_s=30,
        what=f"volume {name} to be free",
    )


def remove(node: Node, *volumes: str, who: str = "default") -> None:
    """Nothing of them is left."""
    for name in volumes:
        node.ok("volume", "remove", name, "--force", node=who)
