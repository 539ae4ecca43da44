"""Environment and arguments: of the services to a job, and of a job to others. Issue 3, B02 and B20.

The environment of every service and of the test itself is the canary: none of its names, but for the few that every
job has, and none of its values may be seen.
"""

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.node import Node, end, read_all
from tests.leaks import paths_below
from tests.security.attack import python_in_job
from tests.soak.holding import holding
from tests.waiting import wait_for

EVERY_JOB_HAS = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "JOBLET_JOB_ID"}
SECRET = "s3cret-4d1f-of-the-first-owner"

LOOK = r"""
import json, os
def read(path):
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError as error:
        return "errno %d" % error.errno
numbers = [name for name in os.listdir("/proc") if name.isdigit()]
print(json.dumps({
    "own": dict(os.environ),
    "environ": {number: read("/proc/%s/environ" % number) for number in numbers},
    "cmdline": {number: read("/proc/%s/cmdline" % number) for number in numbers},
    "title": {number: read("/proc/%s/comm" % number) for number in numbers},
}))
"""


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process of the host was started with."""
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(pair.split("=", 1) for pair in raw.split("\0") if "=" in pair)


def parent_of(pid: int) -> int:
    """The parent of a process, on the host."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


@pytest.mark.threat("B02")
def test_nothing_of_the_services_environment_is_seen(node: Node) -> None:
    """A job has what it was given and a fixed few names; its init has none that could be read."""
    canaries = dict(os.environ)
    for pid in node.processes():
        canaries |= environment_of(pid)
    assert len(canaries) > len(EVERY_JOB_HAS), "the services have an environment that could leak"
    seen = python_in_job(node, LOOK, options=("--env", "ASKED=yes")).seen
    assert set(seen["own"]) - {"LC_CTYPE"} == EVERY_JOB_HAS | {"ASKED"}  # Python sets LC_CTYPE itself: PEP 538
    assert sorted(seen["environ"]) == ["1", "2"]
    assert seen["environ"]["1"] == "errno 13"
    assert "ASKED=yes" in seen["environ"]["2"], "its own it can read"
    everything = "\0".join((*seen["environ"].values(), *seen["own"].values()))
    for name, value in canaries.items():
        if name not in EVERY_JOB_HAS and len(value) > 8:
            assert value not in everything, name
    # Not the interpreter's arguments, in which the node's paths stand.
    assert (seen["title"]["1"], seen["cmdline"]["1"].rstrip("\0")) == ("init\n", "init")


@pytest.mark.threat("B20")
def test_arguments_and_environment_are_hidden_from_other_jobs(node: Node) -> None:
    """Neither another owner's job nor another one of the same owner sees the process, its arguments or variables."""
    with holding(node, f"hold(marker={SECRET!r})", options=("--env", f"PLAIN={SECRET}")):
        for options in ((), ("--env", "PLAIN=mine")):
            assert SECRET not in python_in_job(node, LOOK, options=options).stdout.decode()


NOBODY = r"""
import json, os, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
def attempt(way):
    try:
        return str(way())
    except OSError as error:
        return error.errno
answers = {}
for pid in sys.argv[1:]:
    at = "/proc/" + pid
    answers[pid] = {
        "environ": attempt(lambda: open(at + "/environ").read()),
        "mem": attempt(lambda: open(at + "/mem", "rb").read(1)),
        "maps": attempt(lambda: open(at + "/maps").read()),
        "root": attempt(lambda: os.listdir(at + "/root")),
        "cwd": attempt(lambda: os.readlink(at + "/cwd")),
        "fd": attempt(lambda: os.listdir(at + "/fd")),
        "signal": attempt(lambda: os.kill(int(pid), 0)),
    }
print(json.dumps(answers))
"""


@pytest.mark.threat("B20")
def test_another_user_of_the_host_cannot_look_into_a_job(node: Node) -> None:
    """To nobody on the host the job's processes and its monitor are closed but for their names and arguments."""
    with holding(node, "hold()", options=("--env", f"PASSWORD={SECRET}")) as held:
        main = node.status(held.job)["pid"]
        assert environment_of(main)["PASSWORD"] == SECRET, "root of the host can read it"
        init = parent_of(main)
        monitor = parent_of(init)
        command = [sys.executable, "-I", "-S", "-c", NOBODY, str(main), str(init), str(monitor)]
        answers = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert len(answers) == 3
        for pid, ways in answers.items():
            assert set(ways.values()) <= {errno.EACCES, errno.EPERM}, (pid, ways)


@pytest.mark.threat("B20")
def test_a_secret_reaches_its_job_and_nothing_else(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the job's environment; in no answer, file, service log, tap, argument or environment of others."""
    value = f"{SECRET}-of-a-variable"
    joblet = str(Path(sys.executable).with_name("joblet"))
    tap = subprocess.Popen([joblet, "tap", "job.*", "--base-dir", str(node.base)], stdout=subprocess.PIPE)
    tapped = read_all(tap.stdout)
    with monkeypatch.context() as patched:
        patched.setenv("PASSWORD", value)
        wait_for(lambda: node.ok("job", "run", "--", "true") == b"" and tapped.data, what="a tap that hears")
        job = node.detached("--secret-env", "PASSWORD", "--", "sleep", "600")
    try:
        main = node.wait_for_state(job, "running")["pid"]
        assert environment_of(main)["PASSWORD"] == value
        answers = node.ok("--json", "job", "status", job) + node.ok("job", "status", job)
        assert b"PASSWORD" in answers
        answers += node.ok("job", "run", "--dry-run", "--secret-env", f"PASSWORD={value}", "--", "true")
        for pid in {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()} - {main}:
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):  # it has ended
                    assert value.encode() not in Path(f"/proc/{pid}/{name}").read_bytes(), (pid, name)
        for file in paths_below(node.base):
            with contextlib.suppress(FileNotFoundError):  # the journal of a job that has ended
                if file.is_file():
                    assert value.encode() not in file.read_bytes(), file
    finally:
        node.ok("job", "stop", job, "--grace", "0s")
        node.wait_for_state(job, "stopped")
        wait_for(lambda: b"stopped" in tapped.data, what="the end of the job at the tap")
        end(tap)
    answers += node.ok("--json", "job", "list", "--all") + node.log_text().encode() + tapped.data
    assert value.encode() not in answers
    for pid in map(node.service, ("api", "executor", "persist", "volumes")):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search("^Max core file size +1 +1 ", limits, re.MULTILINE), "services dump no core"
