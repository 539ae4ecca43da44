"""The monitor: one process per job that starts it, keeps its output and its end, and depends on nobody else's life.

It lives in a session of its own with nothing but the job's files, waits with epoll(7), and is alone in its process: no
thread, no lock. Phases: STARTING (until the end of the report), RUNNING, ENDING (the main process has ended, init not
yet), DRAINING (everything in the namespace is dead; what is left in the pipes is read), DONE (EXIT is written).

Here: events and timers. The start of the processes is in `birth.py`, the talk with them in `handshake.py`.
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import termios
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final

from common.linux.files import write_once
from common.records import RecordType, Stream
from services.executor.launcher.birth import Born
from services.executor.launcher.capture import LineSplitter
from services.executor.launcher.commands import Verb, decode_commands
from services.executor.launcher.ending import Ending, exit_payload, start_payload
from services.executor.launcher.handshake import MESSAGE_BYTES_MAX, Failure, Kind, failure_of, parse, send
from services.executor.launcher.jobfiles import JobFiles
from services.executor.launcher.journal import DiskJournal, Recorder
from services.executor.launcher.oomwatch import RECHECK_MS, oom_killed, open_oom_watch
from services.executor.launcher.operations import USER_IDS
from services.executor.launcher.task import Watch
from services.executor.launcher.timers import Timers
from services.executor.linux.namespaces import map_ids
from services.executor.linux.processes import pidfd_send_signal

READ_BYTES: Final = 2**20
SPACE_CHECK_MS: Final = 250
"""Without space the journal is looked at this often, in case nobody says that space was freed."""


class Phase(IntEnum):
    """Where the job is, in the only order that there is."""

    STARTING = 1
    RUNNING = 2
    ENDING = 3
    DRAINING = 4
    DONE = 5


class Output:
    """The monitor's end of one of the job's pipes."""

    def __init__(self, stream: Stream, descriptor: int) -> None:
        self.stream = stream
        self.descriptor = descriptor
        self.lines = LineSplitter()
        self.open = True
        self.rest_bytes: int | None = None  # of the job's own that are still to be read, once it is dead


class Monitor:
    """Watches one job to its end."""

    def __init__(self, watch: Watch, files: JobFiles) -> None:
        self._job = watch
        self._files = files
        self._phase = Phase.STARTING
        self._recorder = Recorder(DiskJournal(files.journal), watch.journal)
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._timers = Timers()
        self._outputs: tuple[Output, ...] = ()
        self._reading = False
        self._born: Born | None = None
        self._executing_pid = 0
        self._started = False
        self._exit_recorded = False
        self._pending_signal = 0
        self._status: int | None = None
        self._ended_by = ""
        self._failure: Failure | None = None

    def fail(self, failure: Failure) -> None:
        """No process could be made: write that down and be done."""
        self._failure = failure
        self._phase = Phase.DRAINING
        self._run_loop()

    def run(self, born: Born) -> None:
        """Watch the job to its end."""
        self._born = born
        self._outputs = (Output(Stream.STDOUT, born.stdout), Output(Stream.STDERR, born.stderr))
        self._watch(born.init.pidfd, self._on_init_end)
        self._watch(born.channel.fileno(), lambda: self._receive(born.channel))
        self._watch(born.report.fileno(), lambda: self._receive(born.report))
        self._watch(self._files.control, self._on_command)
        if self._job.groups.oom_watch:
            self._watch_memory(self._job.groups.oom_watch)
        self._timers.set("start", self._job.start_ms_max, self._on_start_timeout)
        self._run_loop()

    # Events

    def _run_loop(self) -> None:
        while True:
            if self._phase is Phase.DRAINING:
                self._drain()
            if self._phase is Phase.DONE:
                return
            self._regulate()
            for descriptor, _ in self._epoll.poll(self._timers.wait_s()):
                handler = self._handlers.get(descriptor)
                if handler is not None:  # else an earlier handler of this round took it away
                    handler()
            self._timers.run_due()

    def _watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._epoll.register(descriptor, select.EPOLLIN)
        self._handlers[descriptor] = handler

    def _unwatch(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None):
            self._epoll.unregister(descriptor)

    # The handshake

    def _receive(self, endpoint: socket.socket) -> None:
        assert self._born is not None
        try:
            packet, ancillary, _, _ = endpoint.recvmsg(MESSAGE_BYTES_MAX, socket.CMSG_SPACE(12))
        except ConnectionResetError:
            # It ended without reading all that was sent to it. That is told once; what it sent itself comes behind.
            return
        if not packet:
            self._unwatch(endpoint.fileno())
            if endpoint is self._born.report and self._executing_pid and self._failure is None:
                self._on_executed()
            return
        message = parse(packet)
        match message.kind:
            case Kind.READY:
                self._let_go(_sender(ancillary))
            case Kind.EXEC:
                self._executing_pid = _sender(ancillary)
            case Kind.FAILED:
                self._failure = self._failure or message.failure
                self._kill()
            case Kind.ENDED:
                self._status = message.number
                self._on_main_end()
            case Kind.GO | Kind.SIGNAL:
                self._failure = self._failure or Failure("handshake", "", 0, f"unexpected {message.kind.name}")
                self._kill()

    def _let_go(self, pid: int) -> None:
        """The main process is in its user namespace: map that, and the job may run."""
        assert self._born is not None
        try:
            if self._job.range_first is not None:
                map_ids(pid, first=self._job.range_first, count=USER_IDS)
            send(self._born.report, Kind.GO)
        except OSError as cause:  # also when it was killed meanwhile
            self._failure = self._failure or failure_of("user namespace", cause)
            self._kill()

    def _on_executed(self) -> None:
        self._phase = Phase.RUNNING
        self._started = True
        self._timers.cancel("start")
        self._recorder.event(RecordType.START, start_payload(self._executing_pid), time.time_ns())
        if self._job.timeout_ms is not None:
            self._timers.set("timeout", self._job.timeout_ms, self._on_timeout)
        if self._pending_signal:
            self._signal(self._pending_signal)

    def _on_start_timeout(self) -> None:
        text = f"not started within {self._job.start_ms_max} ms"
        self._failure = self._failure or Failure("start", "", 0, text)
        self._kill()

    # Out of memory, where the kernel does not kill all of the job by itself

    def _watch_memory(self, group: str) -> None:
        try:
            descriptor = open_oom_watch(group)
        except OSError:
            return  # the driver tells so among its restrictions
        self._watch(descriptor, lambda: self._on_out_of_memory(descriptor, group))

    def _on_out_of_memory(self, descriptor: int, group: str) -> None:
        os.read(descriptor, 8)
        self._look_for_victim(group, iter(RECHECK_MS))

    def _look_for_victim(self, group: str, pauses_ms: Iterator[int]) -> None:
        if oom_killed(group):
            self._kill()
        elif (pause_ms := next(pauses_ms, None)) is not None:
            self._timers.set("memory", pause_ms, lambda: self._look_for_victim(group, pauses_ms))

    # Stopping

    def _on_command(self) -> None:
        for command in decode_commands(os.read(self._files.control, 4096)):
            match command.verb:
                case Verb.STOP:
                    self._stop(command.signal, command.grace_ms, "client")
                case Verb.SPACE_FREED:
                    self._on_space()

    def _on_timeout(self) -> None:
        self._stop(self._job.stop_signal, self._job.grace_ms, "timeout")

    def _stop(self, number: int, grace_ms: int, ended_by: str) -> None:
        if self._phase not in (Phase.STARTING, Phase.RUNNING):
            return
        self._ended_by = self._ended_by or ended_by
        if number == signal.SIGKILL:
            self._kill()
            return
        # A second stop may shorten the grace, never lengthen it.
        self._timers.set_sooner("kill", grace_ms, self._kill)
        if self._phase is Phase.RUNNING:
            self._signal(number)
        else:
            self._pending_signal = number  # sent at its first instruction

    def _signal(self, number: int) -> None:
        assert self._born is not None
        try:
            send(self._born.channel, Kind.SIGNAL, number=number)
        except OSError:
            return  # init has ended: its pidfd tells the rest

    def _kill(self) -> None:
        """SIGKILL init: the kernel kills everything in its PID namespace."""
        assert self._born is not None
        try:
            pidfd_send_signal(self._born.init.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has ended: its pidfd tells the rest
        self._lift_limits()

    def _lift_limits(self) -> None:
        """Who is dead by SIGKILL still waits in the kernel until its input and output have passed."""
        for path, value in self._job.groups.lift:
            with contextlib.suppress(OSError):  # the group is gone: nobody waits in it
                write_once(path, value)

    # The end

    def _on_main_end(self) -> None:
        assert self._born is not None
        self._drain_endpoint(self._born.report)  # it was started first, whatever epoll told first
        self._phase = Phase.ENDING
        self._lift_limits()
        for name in ("start", "timeout", "memory"):
            self._timers.cancel(name)

    def _drain_endpoint(self, endpoint: socket.socket) -> None:
        while endpoint.fileno() in self._handlers:  # its writers are dead: this ends
            self._receive(endpoint)

    def _on_init_end(self) -> None:
        assert self._born is not None
        self._unwatch(self._born.init.pidfd)
        self._drain_endpoint(self._born.report)
        self._drain_endpoint(self._born.channel)
        _, init_status = os.waitpid(self._born.init.pid, 0)
        if not self._started and self._failure is None:
            because = "" if self._ended_by else ": its limits of memory or processes may be too low"
            self._failure = Failure("start", "", 0, f"the job was killed before it was started{because}")
        if self._status is None:
            self._status = init_status  # it was killed, and the job with it
        self._phase = Phase.DRAINING
        self._timers.clear()
        for output in self._outputs:
            # Whoever was handed the pipe may go on writing to it, and would hold the end up for ever.
            output.rest_bytes = _unread_bytes(output.descriptor) if output.open else 0

    def _drain(self) -> None:
        """All of the job is dead: read what is in the pipes, as far as the disk has space for it."""
        for output in self._outputs:
            while output.open and self._recorder.accepts_rest():
                self._read(output)
        if not any(output.open for output in self._outputs):
            self._finish()

    def _finish(self) -> None:
        if not self._exit_recorded:
            self._exit_recorded = True
            ending = Ending(None if self._failure else self._status, self._ended_by, self._failure)
            self._recorder.event(RecordType.EXIT, exit_payload(ending, self._job.groups), time.time_ns())
        if self._recorder.settled:
            self._sync()
            self._phase = Phase.DONE

    def _sync(self) -> None:
        try:
            os.fsync(self._files.journal)
        except OSError:
            return  # nobody could do better: what the disk lost is found by the checksums

    # Output

    def _regulate(self) -> None:
        """Read the pipes when there is space for what they bring, else look again later."""
        # Not before it was started: START is the first record.
        wanted = self._phase in (Phase.RUNNING, Phase.ENDING) and self._recorder.accepts_output()
        if wanted != self._reading:
            self._reading = wanted
            for output in self._outputs:
                if wanted and output.open:
                    self._watch(output.descriptor, lambda output=output: self._read(output))  # type: ignore[misc]
                else:
                    self._unwatch(output.descriptor)
        if not (self._recorder.settled and self._recorder.accepts_output()) and "space" not in self._timers:
            self._timers.set("space", SPACE_CHECK_MS, self._on_space)

    def _on_space(self) -> None:
        self._timers.cancel("space")
        self._recorder.retry(time.time_ns())

    def _read(self, output: Output) -> None:
        wanted = READ_BYTES if output.rest_bytes is None else min(READ_BYTES, output.rest_bytes)
        try:
            received = os.read(output.descriptor, wanted)
        except BlockingIOError:
            if self._phase is not Phase.DRAINING:
                return
            received = b""  # a descriptor that the job passed on holds the pipe open, but the job is dead
        now_ns = time.time_ns()
        silence = f"silence {output.stream}"
        if output.rest_bytes is not None:
            output.rest_bytes -= len(received)
        if received:
            self._recorder.output(output.stream, output.lines.feed(received), now_ns)
        else:
            self._unwatch(output.descriptor)
            os.close(output.descriptor)
            output.open = False
            self._recorder.output(output.stream, output.lines.flush(), now_ns)
        if output.lines.held:
            self._timers.set(silence, self._job.journal.silence_ms, lambda: self._on_silence(output))
        else:
            self._timers.cancel(silence)

    def _on_silence(self, output: Output) -> None:
        self._recorder.output(output.stream, output.lines.flush(), time.time_ns())


def _unread_bytes(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), "little")


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Who sent a message, as a pid of this namespace: the kernel says so, SCM_CREDENTIALS in unix(7)."""
    return int.from_bytes(ancillary[0][2][:4], "little")
