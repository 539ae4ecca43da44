"""That a group given to us becomes one whose controllers can be passed on, on this host's v2 hierarchy.

A process of the test plays the executor: its group is made like that of a service with Delegate=yes, with the process
itself in it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from services.executor.cgroups import control_files
from services.executor.cgroups.delegation import LEAF
from services.executor.cgroups.v2 import V2Driver
from services.executor.host import probe_host
from tests.leaks import OWN_MARK
from tests.linux.test_cgroups_contract import own_settings
from tests.waiting import SLOWNESS, wait_for

PROGRAM = Path(__file__).resolve().parents[2]
PREPARING = f"""
import os, sys, time
sys.path.insert(0, {str(PROGRAM)!r})
from pathlib import Path
from common.messages.jobs import Limits
from services.executor.cgroups.v2 import V2Driver
if os.fork() == 0:
    time.sleep(3600)
driver = V2Driver(Path(sys.argv[1]), parent="jobs", cpus=frozenset({{0}}))
driver.prepare()
driver.prepare()
print(dict(driver.unsupported(Limits(pids=10))).get("pids", ""), flush=True)
sys.stdin.read()
"""


class Given(NamedTuple):
    """A group that was given away, and the processes that were started in it."""

    group: Path
    processes: list[subprocess.Popen[bytes]]

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Run `command` in the group itself."""
        script = 'echo 0 > "$1/cgroup.procs" || exit 99; shift; exec "$@"'
        words = ["sh", "-c", script, "sh", str(self.group), *command]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.processes.append(process)
        return process

    def inside(self, below: str = "") -> frozenset[int]:
        """Processes in the group, or in one below it."""
        return control_files.read_processes(str(self.group / below / "cgroup.procs"))


@pytest.fixture(name="given")
def given_group(tmp_path: Path) -> Iterator[Given]:
    """A group below a parent that passes on what it has."""
    facts = probe_host(own_settings(tmp_path))
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if facts.cgroup_tree is None:
        pytest.skip("needs cgroups v2")
    above = V2Driver(Path(facts.cgroup_tree), parent=f"{OWN_MARK}-given", cpus=facts.cpus)
    above.prepare()
    given = Given(Path(facts.cgroup_tree, f"{OWN_MARK}-given", "unit"), [])
    given.group.mkdir()
    try:
        yield given
    finally:
        control_files.put(str(given.group / "cgroup.kill"), "1")
        for process in given.processes:
            process.communicate(timeout=10 * SLOWNESS)
        wait_for(lambda: control_files.remove_group(str(given.group)), what="the group to go")
        above.release()


def prepared(given: Given) -> tuple[subprocess.Popen[bytes], str]:
    """The process that prepares the group for jobs, and why it cannot limit processes, if so."""
    process = given.start(sys.executable, "-c", PREPARING, str(given.group))
    assert process.stdout is not None
    return process, process.stdout.readline().decode().strip()


def test_the_executor_moves_itself_below(given: Given) -> None:
    """Itself and its children go into a leaf; the group is free, and what can be passed on is."""
    process, refused = prepared(given)
    assert given.inside() == frozenset()
    assert process.pid in given.inside(LEAF)
    assert len(given.inside(LEAF)) == 2
    available = control_files.read(str(given.group / "cgroup.controllers")).split()
    enabled = control_files.read(str(given.group / "cgroup.subtree_control")).split()
    assert set(enabled) == set(available) & {"cpu", "memory", "pids", "io", "cpuset"}
    assert (refused == "") == ("pids" in available)


def test_a_stranger_is_not_moved(given: Given) -> None:
    """A process that is none of ours stays; what cannot be passed on because of it is told with its name."""
    stranger = given.start("sleep", "3600")
    name = Path(f"/proc/{stranger.pid}/comm")
    wait_for(
        lambda: given.inside() == {stranger.pid} and name.read_text() == "sleep\n", what="the stranger to be there"
    )
    _, refused = prepared(given)
    assert given.inside() == {stranger.pid}
    if "pids" in control_files.read(str(given.group / "cgroup.controllers")).split():
        assert "Device or resource busy" in refused
        assert f"{stranger.pid} (sleep)" in refused
    else:
        assert "not given" in refused
