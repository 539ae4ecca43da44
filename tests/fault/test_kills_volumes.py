"""The volumes service is killed at each place that common/failpoints.py names; then nothing is orphaned or lost.

A place that is never passed fails its row. What must hold afterwards: each directory of a volume has its record and
each record its directory, nothing is mounted and no loop device is held that no job needs, and every byte that a job
had synchronized is there.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from common.failpoints import PLACES
from tests.e2e.node import Node
from tests.e2e.volumes import create, free, inspect, names, run, running
from tests.fault.kills_node import Failpoints, failpoints, started
from tests.leaks import mounts_below
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a node")

SETTINGS: Final = {"joblet": {"volumes": {"idle_mounts_max": 0}}}
"""A volume is unmounted as soon as its job has left it: so each job passes all places."""


class Way(NamedTuple):
    """The command during which a place is passed, about the volume `kept` or a new one `new`."""

    command: tuple[str, ...]
    number: int = 1


CREATE: Final = ("volume", "create", "new", "--size=8MB")
USE: Final = ("job", "run", "--volume", "kept", "--", "/bin/sh", "-c", "echo more >> /volumes/kept/file")
REMOVE: Final = ("volume", "remove", "old")
SNAPSHOT: Final = ("volume", "snapshot", "create", "kept", "--as", "now")
RESIZE: Final = ("volume", "resize", "kept", "--size=12MB")

WAYS: Final[dict[str, Way]] = {
    "volumes.recorded": Way(CREATE),
    "volumes.allocated": Way(CREATE),
    "volumes.formatted": Way(CREATE),
    "volumes.use_recorded": Way(USE),
    "volumes.device": Way(USE),
    "volumes.mounted": Way(USE),
    "volumes.unmounted": Way(USE),
    "volumes.released": Way(USE),
    "volumes.deleting": Way(REMOVE),
    "volumes.removed": Way(REMOVE),
    "volumes.frozen": Way(SNAPSHOT),
    "volumes.copied": Way(SNAPSHOT),
    "volumes.resized": Way(RESIZE),
}


def test_every_place_has_a_row() -> None:
    """A new place in the service needs a way that leads there."""
    assert set(WAYS) == {place for place in PLACES if place.startswith("volumes.")}


@pytest.fixture(scope="module")
def points() -> Iterator[Failpoints]:
    """Places of the node below."""
    with failpoints() as armed:
        yield armed


@pytest.fixture(scope="module")
def node(points: Failpoints) -> Iterator[Node]:
    """One node for all rows: what a row leaves behind would be seen by the next."""
    points.disarm()
    with started("volumes", SETTINGS) as made:
        yield made


@pytest.mark.requirement("S1.29", "S1.48", "S1.49")
@pytest.mark.threat("F10")
@pytest.mark.parametrize("place", sorted(WAYS))
def test_killed_at(node: Node, points: Failpoints, place: str) -> None:
    """The command is told to have failed, or is done; asked again it is done; nothing else has happened."""
    way = WAYS[place]
    for name in names(node):  # of a row that failed
        node.ok("volume", "remove", name, "--force")
    create(node, "kept", "8MB")
    create(node, "old", "8MB")
    run(node, "kept", "echo first > /volumes/kept/file; sync")
    free(node, "kept")
    holder = ""
    if place == "volumes.frozen":  # only what is mounted is frozen
        holder = running(node, "kept", "while :; do echo t >> /volumes/kept/t; sleep 0.1; done")
    before = node.service("volumes")
    points.arm(place, way.number)
    done = node.rnx(*way.command)
    wait_for(lambda: not points.armed(place), timeout_s=20, what=f"the service to pass {place}")
    wait_for(lambda: node.service("volumes") not in (0, before), timeout_s=30, what="another service")
    wait_for(lambda: node.rnx("volume", "list").returncode == 0, timeout_s=30, what="an answer")
    if holder:
        node.ok("job", "stop", holder, "--signal", "KILL", "--grace", "0s")
    free(node, "kept")
    if done.returncode != 0:
        again = node.rnx(*way.command)
        assert again.returncode == 0 or b"exist" in again.stderr or b"no such volume" in again.stderr, again.stderr
    content = run(node, "kept", "cat /volumes/kept/file").splitlines()
    assert content[0] == b"first"
    assert set(content) <= {b"first", b"more"}
    if way.command is USE:
        assert len(content) in (1, 2, 3)
        assert done.returncode != 0 or b"more" in content
    if way.command is RESIZE:
        assert inspect(node, "kept")["size_bytes"] == 12 << 20
        assert int(run(node, "kept", "stat -f -c %a /volumes/kept")) > (8 << 20) // 4096
    for name in names(node):
        free(node, name)
    check_nothing_is_orphaned(node)
    for name in names(node):
        node.ok("volume", "remove", name)
    check_nothing_is_orphaned(node)
    assert not list((node.base / "volumes").iterdir())


def check_nothing_is_orphaned(node: Node) -> None:
    """Records and directories are the same; without jobs there are neither mounts nor loop devices."""
    ids = {inspect(node, name)["id"] for name in names(node)}
    directories = {each.name for each in (node.base / "volumes").iterdir()}
    assert directories == ids
    wait_for(lambda: not volume_mounts(node), what="mounts of volumes to go")
    wait_for(lambda: not loops(node), what="loop devices to go")


def volume_mounts(node: Node) -> list[str]:
    """Below the node's volumes."""
    return [each for each in mounts_below(node.base) if f"{node.base}/volumes/" in each]


def loops(node: Node) -> list[str]:
    """Loop devices with an image of this node, also one that is deleted."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if file.read_text().startswith(f"{node.base}/"):
                found.append(file.parent.parent.name)
        except OSError:
            continue  # it goes at this moment
    return found
