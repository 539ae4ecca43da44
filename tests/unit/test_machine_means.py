"""What a job comes to whose journal or monitor cannot be opened: for good, or while the process lacks the means."""

import asyncio
import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.bus.memory import Memory
from common.config.layout import layout_of
from common.identifiers import JobId
from common.messages.jobs import GetNode, NodeFacts, State
from services.executor.events import Job
from tests.unit.executor_asking import got, in_state, launched, numbered
from tests.unit.executor_fakes import FakeHost, FakePersist, node_settings, running_node
from tests.waiting import await_for


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Nothing can be opened meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    held = []
    try:
        while True:
            try:
                held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Busy(FakeHost):
    """Its jobs print and end at once; and then no descriptor is left until `enough` is set."""

    enough: asyncio.Event

    async def launch(self, job: Job, secrets: Mapping[str, str]) -> None:
        """See ports.Launches."""
        await super().launch(job, secrets)
        monitor = self.monitors[job.record.id]
        monitor.start()
        monitor.output(numbered(1, 5))
        monitor.append(monitor.exit_record())
        self.enough, none_left = asyncio.Event(), asyncio.Event()
        asyncio.get_running_loop().create_task(self._use_up(none_left))
        await none_left.wait()

    async def _use_up(self, none_left: asyncio.Event) -> None:
        with no_descriptor_left():
            none_left.set()
            await self.enough.wait()


def test_a_job_that_cannot_be_followed_for_want_of_descriptors_is_followed_later(tmp_path: Path) -> None:
    """It stays STARTING that long, and not for ever; then all of its output is stored, and its true end told."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        settings = node_settings(tmp_path)
        host = Busy(layout_of(settings))
        async with running_node(settings, transport, host) as node:
            job, monitor = await launched(node)
            await asyncio.sleep(0.2)
            assert (await got(node, job)).state is State.STARTING
            host.enough.set()
            await in_state(node, job, State.COMPLETED)
            monitor.die()
            await await_for(lambda: persist.ended.get(job) == 5, what="the end with persist")
            assert persist.output(job) == numbered(1, 5)
        storing.cancel()

    asyncio.run(scenario())


def test_an_executor_starts_that_cannot_take_up_a_job_yet(tmp_path: Path) -> None:
    """The job is not touched, the other commands are answered, and it is taken up as soon as it can be."""

    async def scenario() -> None:
        transport = Memory()
        settings = node_settings(tmp_path)
        async with running_node(settings, transport) as first:
            job, monitor = await launched(first)
            monitor.start()
            await in_state(first, job, State.RUNNING)

        class Short(FakeHost):
            tries = 0

            def watch(self, job: JobId, gone: Callable[[], None]) -> bool:
                self.tries += 1
                if self.tries == 1:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                return super().watch(job, gone)

        host = Short(layout_of(settings))
        host.monitors = first.host.monitors
        async with running_node(settings, transport, host) as second:
            assert host.swept is not None
            assert host.swept[0] == {job}, "it is taken for alive"
            monitor.output(numbered(1, 2))
            await await_for(lambda: host.tries == 2, what="the next try")
            monitor.die()
            lost = await in_state(second, job, State.LOST)
            assert lost.last_sequence == 2

    asyncio.run(scenario())


class Broken(FakeHost):
    """Its journals are directories when `broken`: any reason not to be opened will do."""

    broken = False

    async def launch(self, job: Job, secrets: Mapping[str, str]) -> None:
        """See ports.Launches."""
        await super().launch(job, secrets)
        if self.broken:
            self.damage(job.record.id)

    def damage(self, job: JobId) -> None:
        """From now on it cannot be opened."""
        journal = self.layout.job_dir(job) / "journal"
        journal.unlink()
        journal.mkdir()

    async def forget(self, job: JobId) -> None:
        """See ports.Cleans."""
        shutil.rmtree(self.layout.job_dir(job), ignore_errors=True)


@pytest.mark.parametrize("restart", [False, True])
def test_a_journal_that_cannot_be_opened_costs_its_own_job_only(tmp_path: Path, *, restart: bool) -> None:
    """The executor serves and starts; the job has an end that says why, and persist is told of it."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        settings = node_settings(tmp_path)
        host = Broken(layout_of(settings))
        host.broken = not restart
        async with running_node(settings, transport, host) as node:
            job, monitor = await launched(node)
            if not restart:
                await await_for(lambda: monitor.gone, what="the watch")
                monitor.die()
                await in_state(node, job, State.LOST)
        if restart:
            host.damage(job)
            monitor.die()
        async with running_node(settings, transport, host) as node:
            record = await in_state(node, job, State.LOST)
            assert record.reason == "its journal is damaged: it cannot be opened: Is a directory"
            await await_for(lambda: job in persist.ended, what="the end with persist")
            assert (await node.ask.request(GetNode(), NodeFacts)).running_jobs == 0
        storing.cancel()

    asyncio.run(scenario())
