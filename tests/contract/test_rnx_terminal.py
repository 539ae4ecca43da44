"""What others chose never drives the terminal of who looks: every command of rnx, on a terminal and in a pipe.

Output of jobs (`rnx job log`) has tests of its own in test_rnx_log.py.
"""

import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from proto.joblet.v1 import job_pb2, node_pb2
from tests.contract.rnx_fake_node import REPOSITORY, FakeNode, environment, fake_node
from tests.waiting import wait_for

ID = "00000001-0000-4000-8000-000000000000"
HOSTILE = "\x1b]52;c;AAAA\x07\x1b[2J\x9b31m\r\u202eevil\x00"
SHOWN = r"\x1b]52;c;AAAA\x07\x1b[2J\x9b31m \u202eevil\x00"
STYLE = re.compile(rb"\x1b\[[0-9;]*m")
"""What rnx itself writes on a terminal: colours."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node on which somebody has put control characters wherever text can stand."""
    with fake_node(tmp_path) as served:
        spec = job_pb2.JobSpec(
            command=HOSTILE,
            args=[HOSTILE],
            name=HOSTILE,
            labels={HOSTILE: HOSTILE},
            environment={HOSTILE: HOSTILE},
            workdir=HOSTILE,
            limits=job_pb2.Limits(cpu_cores=HOSTILE),
            volumes=[job_pb2.VolumeMount(name=HOSTILE, path=HOSTILE)],
        )
        job = served.jobs.add(1, name=HOSTILE, spec=spec, state=job_pb2.FAILED, reason=HOSTILE)
        job.owner = job.node_id = HOSTILE
        served.jobs.end = job_pb2.Job(state=job_pb2.FAILED, reason=HOSTILE)
        served.jobs.not_found_text = HOSTILE
        served.nodes.info.CopyFrom(
            node_pb2.NodeInfo(
                node_id=HOSTILE,
                version=HOSTILE,
                kernel=HOSTILE,
                cgroup_version=HOSTILE,
                capabilities=[node_pb2.Capability(name=HOSTILE, detail=HOSTILE)],
            )
        )
        yield served


COMMANDS = {
    "status": ("job", "status", ID),
    "status json": ("--json", "job", "status", ID),
    "list": ("job", "list"),
    "list json": ("--json", "job", "list"),
    "wait": ("job", "wait", ID),
    "plan": ("job", "run", "--dry-run", "--", HOSTILE.replace("\0", "")),
    "run": ("job", "run", "--", "true"),
    "error": ("job", "status", "99999999"),
    "usage": ("job", "list", HOSTILE.replace("\0", "")),
    "node": ("node", "info"),
    "node json": ("--json", "node", "info"),
    "monitor json": ("--json", "monitor"),
}


def assert_harmless(shown: bytes) -> None:
    """Nothing is left that a terminal obeys, and what was there is shown instead."""
    text = STYLE.sub(b"", shown).decode("utf-8").replace("\r\n", "\n")
    assert [character for character in text if not character.isprintable() and character not in "\n…"] == []
    assert r"\x1b]52;c;AAAA" in text or r"\u001b]52;c;AAAA" in text


@pytest.mark.threat("C20")
@pytest.mark.parametrize("name", COMMANDS)
def test_in_a_pipe(node: FakeNode, name: str) -> None:
    """Whoever reads it with less or copies it is as safe as on a terminal."""
    outcome = node.rnx(*COMMANDS[name])
    assert_harmless(outcome.out + outcome.err.encode())


@pytest.mark.threat("C20")
@pytest.mark.parametrize("name", COMMANDS)
def test_on_a_terminal(node: FakeNode, name: str) -> None:
    """Stdout and stderr of every command together."""
    leader, follower = pty.openpty()
    process = node.start(*COMMANDS[name], stdout=follower, stderr=follower)
    os.close(follower)
    shown = bytearray()
    try:
        while data := os.read(leader, 65536):
            shown += data
    except OSError:  # EIO: the other side is closed, pty(7)
        pass
    finally:
        os.close(leader)
        process.wait(timeout=20)
    assert_harmless(bytes(shown))


@pytest.mark.threat("C20")
def test_the_live_view(node: FakeNode) -> None:
    """Beside what draws the view itself, nothing that came with a job reaches the screen."""
    leader, follower = pty.openpty()
    process = node.start("monitor", stdout=follower, stderr=subprocess.PIPE)
    os.close(follower)
    shown = b""
    try:
        while rb"\x1b]52;c;AAAA" not in shown:
            shown += os.read(leader, 65536)
        process.send_signal(signal.SIGINT)
        while b"\x1b[?1049l" not in shown:
            shown += os.read(leader, 65536)
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
        os.close(leader)
    for forbidden in (b"\x1b]", b"\x07", "\x9b".encode(), "\u202e".encode(), b"\x1b[2J\x9b"):
        assert forbidden not in shown


@pytest.mark.parametrize("words", [("job", "list"), ("monitor",)])
def test_a_pipe_is_no_terminal_whatever_the_environment_says(node: FakeNode, words: tuple[str, ...]) -> None:
    """FORCE_COLOR, which pipelines set, neither colours nor cuts what a program reads, and no view fills its screen."""
    plain = node.rnx(*words)
    forced = subprocess.run(
        ["env", "FORCE_COLOR=1", "TTY_COMPATIBLE=1", "COLUMNS=80", *node.command(*words)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (forced.returncode, forced.stdout) == (plain.code, plain.out)
    assert b"\x1b" not in forced.stdout


def test_a_terminal_that_cannot_draw_gets_one_view(node: FakeNode) -> None:
    """With TERM=dumb, as in an editor's shell, `rnx monitor` showed nothing for ever."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        ["env", "TERM=dumb", *node.command("monitor")], cwd=REPOSITORY, env=environment(), stdout=follower
    )
    os.close(follower)
    shown = bytearray()
    try:
        assert process.wait(timeout=20) == 0
        with suppress(OSError):  # EIO: the other side is closed, pty(7)
            while data := os.read(leader, 65536):
                shown += data
    finally:
        process.kill()
        process.wait()
        os.close(leader)
    assert b"00000001" in shown


@pytest.mark.threat("F38")
def test_the_live_view_survives_a_restart_of_the_node(node: FakeNode) -> None:
    """While nobody answers it shows what was before and says so; then it goes on, without what is gone since."""
    node.jobs.jobs.clear()
    node.nodes.info.CopyFrom(node_pb2.NodeInfo(node_id="node-1", version="0.1.0"))
    deleted = node.jobs.add(7, state=job_pb2.RUNNING)
    leader, follower = pty.openpty()
    process = node.start("monitor", stdout=follower, stderr=subprocess.PIPE)
    os.close(follower)

    def frame_with(*words: bytes, without: bytes = b"\0") -> bool:
        """The last whole frame of the screen that was drawn."""
        shown.extend(os.read(leader, 65536))
        frame = bytes(shown).rpartition(b"\x1b[H")[2]
        return all(word in frame for word in words) and without not in frame

    shown = bytearray()
    try:
        wait_for(lambda: frame_with(b"00000007"), what="the first view")
        node.stop()
        wait_for(lambda: frame_with(b"trying again", b"00000007"), what="the view to say that nobody answers")
        del node.jobs.jobs[deleted.id]
        node.jobs.add(8, state=job_pb2.RUNNING)
        node.serve()
        wait_for(lambda: frame_with(b"00000008", without=b"00000007"), timeout_s=20, what="the view to go on")
        process.send_signal(signal.SIGINT)
        while b"\x1b[?1049l" not in shown:
            shown.extend(os.read(leader, 65536))
        process.communicate(timeout=20)
        assert process.returncode == 130
    finally:
        process.kill()
        process.wait()
        os.close(leader)


@pytest.mark.threat("C20")
def test_positive_control(node: FakeNode) -> None:
    """The node does send what would drive a terminal: a client without escaping would get it."""
    assert node.jobs.jobs[ID].reason == HOSTILE
    assert_harmless(SHOWN.encode())
    with pytest.raises(AssertionError):
        assert_harmless(HOSTILE.encode())


def test_an_attached_run_says_once_that_its_job_waits(node: FakeNode) -> None:
    """On a terminal, with the place or the time; never where stderr is a file, which is the job's."""
    job = node.jobs.add(1, state=job_pb2.PENDING, queue_position=3)
    node.jobs.end = job_pb2.Job(state=job_pb2.COMPLETED, exit_code=0)
    for key, expected in (
        ("k1", b"rnx: waiting: position 3 (job " + ID.encode()),
        ("k2", b"rnx: waiting until 2023-11-14"),
    ):
        node.jobs.keys[key] = job.id
        leader, follower = pty.openpty()
        process = node.start("run", "--idempotency-key", key, "x", stdout=subprocess.DEVNULL, stderr=follower)
        os.close(follower)
        shown = bytearray()
        try:
            while data := os.read(leader, 65536):
                shown += data
        except OSError:  # EIO: the other side is closed, pty(7)
            pass
        finally:
            os.close(leader)
            process.wait(timeout=20)
        assert shown.count(b"waiting") == 1
        assert expected in shown
        assert node.rnx("run", "--idempotency-key", key, "x").err == ""
        job.state = job_pb2.SCHEDULED
        job.spec.start_at.seconds = 1_700_000_000
