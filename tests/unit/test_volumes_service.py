"""The volumes service as a real process: it starts, refuses what is no command, stays alive, and ends when asked."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.bus import codec
from common.bus.zeromq import ZeroMQ
from common.messages.jobs import GetNode
from common.messages.topics import VOLUMES_COMMANDS
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]


class Running:
    """The process, its log and its base directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.log = base.parent / "volumes.log"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.settimeout(20)
        self._notify.bind(str(base.parent / "notify"))
        config = base.parent / "joblet-config.yml"
        config.write_text('version: "3.0"\nlogging: {level: INFO, format: json, output: stdout}\n')
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.volumes", "--config", str(config), "--base-dir", str(base)],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "NOTIFY_SOCKET": str(base.parent / "notify")},
            )

    def wait_ready(self) -> None:
        """Until it says READY=1."""
        try:
            assert self._notify.recv(100) == b"READY=1"
        except TimeoutError:
            pytest.fail(f"the service did not get ready:\n{self.log.read_text()}")

    def entries(self) -> list[dict[str, object]]:
        """The lines of its log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def send(self, *payloads: bytes) -> None:
        """Push bytes to its socket."""

        async def push() -> None:
            transport = ZeroMQ(self.base / "run")
            sending = transport.push(VOLUMES_COMMANDS)
            for payload in payloads:
                await sending.send(payload)
            await asyncio.to_thread(wait_for, self.refused, what="the service to refuse")
            transport.close()

        asyncio.run(push())

    def refused(self) -> bool:
        """Whether it has told of a refusal."""
        return any(entry["event"] == "message refused" for entry in self.entries())

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)

    def close(self) -> None:
        """Whatever the test did, nothing is left."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._notify.close()


@pytest.fixture
def volumes() -> Iterator[Running]:
    """A volumes service that is ready. Its base lies where service users can reach it, which tmp_path is not."""
    with tempfile.TemporaryDirectory(prefix="joblet-") as directory:
        Path(directory).chmod(0o755)
        running = Running(Path(directory, "node"))
        try:
            running.wait_ready()
            yield running
        finally:
            running.close()


def test_it_binds_its_socket_and_ends_when_asked(volumes: Running) -> None:
    """Ready means that the socket is there, closed to others; SIGTERM ends it with 0."""
    found = (volumes.base / "run" / VOLUMES_COMMANDS.file).stat()
    assert found.st_mode & 0o777 == 0o660
    assert volumes.stop() == 0


@pytest.mark.threat("E01")
def test_every_message_is_refused_and_counted(volumes: Running) -> None:
    """A well-formed message of another endpoint, garbage and nothing at all: refused, counted, and it lives on."""
    volumes.send(codec.encode(GetNode()), b"\xff\x00garbage", b"")
    assert volumes.process.poll() is None
    assert volumes.stop() == 0
    (counted,) = [entry for entry in volumes.entries() if entry["event"] == "messages refused"]
    assert counted["unknown_kind"] == 1
    assert "ended" in {entry["event"] for entry in volumes.entries()}


def test_a_second_one_refuses_to_start(volumes: Running) -> None:
    """Two services on one socket would steal each other's messages: the second says who is there, and ends."""
    second = subprocess.run(
        [sys.executable, "-m", "services.volumes", "--base-dir", str(volumes.base)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert "another process serves" in second.stdout + second.stderr
    assert volumes.process.poll() is None
