"""The executor as a process, with real jobs: it is killed at bad moments, and no job notices."""

import asyncio
import os
import re
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import JobletError
from common.messages.jobs import DeleteJob, GetNode, JobDeleted, JobFound, JobPlan, JobSpec, NodeFacts, PlanJob, State
from common.messages.jobs import StopJob as Stop
from common.messages.topics import EXECUTOR_COMMANDS, PERSIST_ACKS
from services.executor.monitors import monitor_pid
from tests.linux.executor_process import Asker, ExecutorProcess, asking, root_of, wait_until_bound
from tests.unit.executor_fakes import FakePersist
from tests.waiting import SLOWNESS, await_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def executor() -> Iterator[ExecutorProcess]:
    """A running executor; killed in the end. Its base directory must be open to the service users, tmp_path is not."""
    with tempfile.TemporaryDirectory(prefix="joblet-test-") as name:
        base = Path(name)
        base.chmod(0o755)
        process = ExecutorProcess(base)
        process.start()
        try:
            wait_until_bound(base)
            yield process
        finally:
            process.close()


async def settled(asker: Asker, executor: ExecutorProcess) -> None:
    """Every job's groups are gone: nothing runs and nothing waits to be removed."""

    async def idle() -> bool:
        return (await asker.ask(GetNode(), NodeFacts)).running_jobs == 0

    await await_for(idle, what="an idle node")
    await await_for(
        lambda: all(not (path / "root").exists() for path in (executor.base / "jobs").iterdir()), what="the clean-up"
    )


def test_real_jobs_have_real_ends(executor: ExecutorProcess) -> None:
    """Exit code, signal, time-out, stop, and a command that does not exist: each has its state and its words."""

    async def scenario() -> None:
        async with asking(executor.base) as asker:
            seven = await asker.until(await asker.run("exit 7"), State.FAILED)
            assert (seven.exit_code, seven.reason) == (7, "exited with code 7")
            killed = await asker.until(await asker.run("kill -9 $$"), State.FAILED)
            assert (killed.signal, killed.reason) == (9, "killed by signal 9 (SIGKILL)")
            fine = await asker.until(await asker.run("echo hello"), State.COMPLETED)
            assert (fine.exit_code, fine.last_sequence) == (0, 1)
            assert fine.usage is not None
            job = await asker.run("sleep 100")
            running = await asker.until(job, State.RUNNING)
            assert alive(running.pid)
            await asker.ask(Stop(job=job), JobFound)
            stopped = await asker.until(job, State.STOPPED)
            assert stopped.signal == signal.SIGTERM
            assert not alive(running.pid)
            await settled(asker, executor)

    asyncio.run(scenario())


def test_a_stop_right_behind_the_start_is_not_lost(executor: ExecutorProcess) -> None:
    """Twenty jobs stopped without waiting for RUNNING: each ends as STOPPED, long before its command would."""

    async def scenario() -> None:
        async with asking(executor.base) as asker:
            for _ in range(20):
                job = await asker.run("exec sleep 100")
                await asker.ask(Stop(job=job, grace_ms=2000), JobFound)
                await asker.until(job, State.STOPPED)
            await settled(asker, executor)

    asyncio.run(scenario())


@pytest.mark.threat("F01")
def test_kill_9_of_the_executor_costs_no_line_and_no_end(executor: ExecutorProcess) -> None:
    """Killed four times while a job prints: same pid, every number with persist once and in order, true exit code."""

    async def scenario() -> None:
        async with asking(executor.base) as asker:
            persist = FakePersist(asker.transport)  # type: ignore[arg-type]  # the same verbs on real sockets
            storing = asyncio.create_task(persist.run())
            burst = "n=0; while [ $n -lt 1000 ]; do n=$((n+1)); i=$((i+1)); echo $i; done"
            job = await asker.run(f"i=0; while [ ! -e /work/end ]; do {burst}; sleep 0.02; done; echo end; exit 5")
            pid = (await asker.until(job, State.RUNNING)).pid
            for kill in range(1, 5):
                await await_for(
                    lambda kill=kill: persist.last.get(job, 0) > 8000 * kill,  # type: ignore[misc]
                    timeout_s=30,
                    what="more lines",
                )
                executor.end(signal.SIGKILL)
                executor.start()
                assert (await asker.get(job)).pid == pid
            (root_of(pid) / "work/end").touch()
            record = await asker.until(job, State.FAILED)
            assert (record.exit_code, record.pid) == (5, pid)
            await await_for(lambda: job in persist.ended, timeout_s=30, what="the end with persist")
            printed = b"".join(b"%d\n" % n for n in range(1, record.last_sequence)) + b"end\n"
            assert persist.output(job) == printed
            await await_for(lambda: not (executor.base / "jobs" / job).exists(), what="the journal's removal")
            storing.cancel()
            persist.close()

    asyncio.run(scenario())


@pytest.mark.threat("F07")
def test_jobs_that_end_while_no_executor_runs_have_their_true_end(executor: ExecutorProcess) -> None:
    """Also one that is killed together with its monitor: that one is LOST, with what it had written."""

    async def scenario() -> None:
        async with asking(executor.base) as asker:
            ends = await asker.run("trap 'echo b; exit 3' USR1; echo a; while :; do sleep 0.05; done")
            lost = await asker.run("echo c; sleep 100")
            pid = (await asker.until(ends, State.RUNNING)).pid
            await asker.until(lost, State.RUNNING)
            lock = monitor_of(executor.base, lost)
            await await_for(lambda: b"c\n" in journal_of(executor.base, lost), what="its line")
            await await_for(lambda: b"a\n" in journal_of(executor.base, ends), what="the trap to be set")
            executor.end(signal.SIGKILL)
            os.kill(pid, signal.SIGUSR1)
            os.kill(lock, signal.SIGKILL)
            await await_for(lambda: b"exit_code" in journal_of(executor.base, ends), what="the job's end")
            executor.start()
            ended = await asker.until(ends, State.FAILED)
            assert (ended.exit_code, ended.last_sequence) == (3, 2)
            gone = await asker.until(lost, State.LOST)
            assert gone.last_sequence == 1
            await settled(asker, executor)

    asyncio.run(scenario())


@pytest.mark.threat("F03")
def test_kill_9_of_a_monitor_ends_its_job_at_once(executor: ExecutorProcess) -> None:
    """LOST within two seconds, and no process of it is left."""

    async def scenario() -> None:
        async with asking(executor.base) as asker:
            job = await asker.run("sleep 100 & sleep 100")
            pid = (await asker.until(job, State.RUNNING)).pid
            os.kill(monitor_of(executor.base, job), signal.SIGKILL)
            async with asyncio.timeout(2 * SLOWNESS):
                await asker.until(job, State.LOST)
            await await_for(lambda: not alive(pid), what="the job's end")
            await settled(asker, executor)

    asyncio.run(scenario())


@pytest.mark.threat("E03")
def test_garbage_on_its_sockets_does_not_harm_it(executor: ExecutorProcess) -> None:
    """Random bytes, and messages of another endpoint: counted, logged, and the next command is answered."""

    async def scenario() -> None:
        async with asking(executor.base) as asker:
            for endpoint in (EXECUTOR_COMMANDS, PERSIST_ACKS):
                with socket.socket(socket.AF_UNIX) as raw:
                    raw.connect(str(executor.base / "run" / endpoint.file))
                    raw.sendall(os.urandom(10_000))
                push = asker.transport.push(endpoint)
                for payload in (b"", b"\xc1", os.urandom(1000), b"\x80"):
                    await push.send(payload)
            node = await asker.ask(GetNode(), NodeFacts)
            assert node.node_id == "node-1"
            await await_for(lambda: "message refused" in executor.log(), what="the log line")
            assert executor.end(signal.SIGTERM) == 0

    asyncio.run(scenario())


def test_a_second_executor_is_refused(executor: ExecutorProcess) -> None:
    """Two on one base directory would launch and settle each other's jobs."""
    second = ExecutorProcess(executor.base)
    second.start()
    assert second._process is not None
    assert second._process.wait(timeout=15 * SLOWNESS) == 1
    second._process = None
    assert re.search(r"another process serves .*events\.sock", executor.log())


def test_the_plan_names_every_step_and_launches_nothing(executor: ExecutorProcess) -> None:
    """PlanJob."""

    async def scenario() -> None:
        async with asking(executor.base) as asker:
            spec = JobSpec(command="ls", environment={"TOKEN": "hidden-value"})
            plan = await asker.ask(PlanJob(owner="ann", spec=spec), JobPlan)
            assert any("pivot" in step or "root" in step for step in plan.steps)
            assert "hidden-value" not in "".join(plan.steps)
            assert (await asker.ask(GetNode(), NodeFacts)).running_jobs == 0
            assert list((executor.base / "jobs").iterdir()) == []

    asyncio.run(scenario())


def test_deleting_a_job_leaves_nothing_of_it(executor: ExecutorProcess) -> None:
    """Its directory and its record are gone."""

    async def scenario() -> None:
        async with asking(executor.base) as asker:
            job = await asker.run("true")
            await asker.until(job, State.COMPLETED)
            await asker.ask(DeleteJob(job=job), JobDeleted)
            assert not (executor.base / "jobs" / job).exists()
            with pytest.raises(JobletError, match="there is no job"):
                await asker.get(job)
            await settled(asker, executor)

    asyncio.run(scenario())


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


def monitor_of(base: Path, job: str) -> int:
    """The pid that holds the job's lock."""
    pid = monitor_pid(base / "jobs" / job)
    assert pid is not None, "nobody holds the lock"
    return pid


def journal_of(base: Path, job: str) -> bytes:
    """The bytes of the job's journal."""
    return (base / "jobs" / job / "journal").read_bytes()
