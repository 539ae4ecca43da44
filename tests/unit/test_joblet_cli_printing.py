"""What the supervisor hears and prints: notifications only from their sender, and no waiting for a reader."""

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.joblet.notifications import NOTIFY_FILE, NotificationSocket
from cli.joblet.printing import QUEUE_LINES_MAX, LogPrinter
from tests.waiting import await_for


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory with a short path."""
    with tempfile.TemporaryDirectory(prefix="joblet-test-") as directory:
        yield Path(directory)


def test_each_line_bears_the_name_of_its_process() -> None:
    """Time, name, text; also a line that is no UTF-8 and one with a line end inside."""
    reading, writing = os.pipe()
    with LogPrinter(writing, ("api", "executor")) as printer:
        printer.line("hello", "api")
        printer.line("of the supervisor")
        printer.line("one\ntwo \udcff", "executor")
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as text:
        lines = [line.split(" ", 1)[1] for line in text.read().splitlines()]
    assert lines == ["api      | hello", "joblet   | of the supervisor", "executor | one", "executor | two \\xff"]


@pytest.mark.threat("C20")
def test_what_a_service_or_its_libraries_print_cannot_drive_the_terminal() -> None:
    """Control characters are shown, tabs and line ends stay."""
    reading, writing = os.pipe()
    with LogPrinter(writing, ("api",)) as printer:
        printer.line("\x1b]52;c;AAAA\x07\x1b[2J\tx\r\u202e", "api")
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", newline="") as text:
        assert text.read().split(" ", 1)[1] == "api    | \\x1b]52;c;AAAA\\x07\\x1b[2J\tx\\x0d\\u202e\n"


def test_nobody_waits_for_a_reader_that_does_not_read() -> None:
    """A full pipe: lines are dropped and counted, and the end comes all the same."""
    reading, writing = os.pipe()
    started = time.monotonic()
    with LogPrinter(writing, ("api",)) as printer:
        for number in range(QUEUE_LINES_MAX * 2):
            printer.line(f"{number} " + "x" * 200, "api")
    assert time.monotonic() - started < 20
    received = os.read(reading, 1 << 20)
    assert b"| 0 x" in received
    os.close(reading)  # the thread gets EPIPE and goes on taking lines away
    with LogPrinter(writing, ("api",)) as printer:
        printer.line("to nobody")
    os.close(writing)


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.threat("E01")
def test_a_notification_names_its_sender_and_is_for_root_only(run_dir: Path) -> None:
    """The kernel tells the pid; nothing in the datagram can; descriptors that come along are closed."""

    async def scenario() -> list[tuple[int, str]]:
        heard: list[tuple[int, str]] = []
        notifications = NotificationSocket(run_dir)
        notifications.listen(lambda pid, state: heard.append((pid, state)))
        assert (run_dir / NOTIFY_FILE).stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(notifications.address)
            sender.send(b"READY=1\nMAINPID=1\n\xff")
            before = descriptors()
            socket.send_fds(sender, [b"FDSTORE=1"], [0, 1])
            await await_for(lambda: len(heard) == 4, what="the notifications")
            assert descriptors() == before
        notifications.close()
        assert not (run_dir / NOTIFY_FILE).exists()
        return heard

    me = os.getpid()
    assert asyncio.run(scenario()) == [(me, "READY=1"), (me, "MAINPID=1"), (me, "\ufffd"), (me, "FDSTORE=1")]


def test_a_socket_file_that_a_killed_supervisor_left_is_no_obstacle(run_dir: Path) -> None:
    """The lock decides who may; the file is replaced."""

    async def scenario() -> None:
        first = NotificationSocket(run_dir)
        second = NotificationSocket(run_dir)
        second.listen(lambda _pid, _state: None)
        second.close()
        first.listen(lambda _pid, _state: None)
        first.close()

    asyncio.run(scenario())
