"""The supervisor: restart policy as a table, order of start and stop, and giving up, over a fake process."""

import asyncio
import signal
from collections.abc import Callable

import pytest

from cli.joblet.restarts import ATTEMPTS_MAX, CALM_S, PAUSE_FIRST_S, PAUSE_MAX_S, Ended, GiveUp, Restart, RestartPolicy
from cli.joblet.supervisor import START_ORDER, Supervisor
from common.errors import JobletError
from common.messages.topics import Service
from tests.waiting import await_for


class FakeProcess:
    """A process that ends when it is told to."""

    def __init__(self, pid: int, events: list[str], name: str) -> None:
        self.pid = pid
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._events = events
        self._name = name

    async def ended(self) -> int:
        """See Process."""
        return await asyncio.shield(self.status)

    def signal(self, number: signal.Signals) -> None:
        """See Process."""
        self._events.append(f"{number.name} {self._name}")
        self.end(0)

    def end(self, status: int) -> None:
        """Let it end."""
        if not self.status.done():
            self.status.set_result(status)


class FakeStarter:
    """Starts fake processes; each tells READY at once unless its service is in `broken`."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.running: dict[Service, FakeProcess] = {}
        self.broken: dict[Service, int] = {}
        self.heard: Callable[[int, str], None] = lambda _pid, _state: None
        self._pids = iter(range(1000, 2000))

    async def __call__(self, service: Service, on_line: Callable[[str], None]) -> FakeProcess:
        """See Starter."""
        process = FakeProcess(next(self._pids), self.events, service)
        self.events.append(f"start {service}")
        self.running[service] = process
        on_line("a line")
        loop = asyncio.get_running_loop()
        if service in self.broken:
            loop.call_soon(process.end, self.broken[service])
        else:
            loop.call_soon(lambda: self.heard(process.pid, "READY=1"))
        return process


def supervised() -> tuple[Supervisor, FakeStarter, list[str]]:
    """A supervisor over fakes, and what it says."""
    said: list[str] = []
    starter = FakeStarter()
    supervisor = Supervisor(starter, lambda text, name: said.append(f"{name}: {text}"))
    starter.heard = supervisor.heard
    return supervisor, starter, said


def test_services_start_in_order_and_stop_in_the_reverse_order() -> None:
    """Each when the one before is ready; api goes first at the end."""

    async def scenario() -> list[str]:
        supervisor, starter, _ = supervised()
        await supervisor.start()
        await supervisor.stop()
        return starter.events

    events = asyncio.run(scenario())
    assert events == [
        *(f"start {service}" for service in START_ORDER),
        *(f"SIGTERM {service}" for service in reversed(START_ORDER)),
    ]


@pytest.mark.threat("F21")
def test_a_service_that_dies_is_started_again_and_the_others_are_left_alone() -> None:
    """After kill -9 of persist: one more start of persist, none of the rest."""

    async def scenario() -> FakeStarter:
        supervisor, starter, said = supervised()
        await supervisor.start()
        first = starter.running[Service.PERSIST]
        first.end(-signal.SIGKILL)
        await await_for(lambda: starter.running[Service.PERSIST] is not first, what="persist to be started again")
        await await_for(lambda: supervisor.states()[Service.PERSIST] == "ready", what="persist to be ready")
        assert any("signal SIGKILL" in line for line in said)
        await supervisor.stop()
        return starter

    starter = asyncio.run(scenario())
    assert [starter.events.count(f"start {service}") for service in START_ORDER] == [1, 2, 1, 1]


@pytest.mark.threat("F25")
def test_a_broken_service_is_given_up_with_an_exact_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first start that is the error of `joblet up`; later the other services go on."""
    monkeypatch.setattr("cli.joblet.restarts.PAUSE_MAX_S", 0.01)

    async def first_start() -> None:
        supervisor, starter, _ = supervised()
        starter.broken[Service.EXECUTOR] = 2
        with pytest.raises(JobletError, match="joblet-executor did not start") as caught:
            await supervisor.start()
        assert f"ended {ATTEMPTS_MAX} times" in caught.value.detail
        assert "exit code 2" in caught.value.detail
        await supervisor.stop()
        assert f"start {Service.API}" not in starter.events

    async def later() -> None:
        supervisor, starter, _ = supervised()
        await supervisor.start()
        starter.broken[Service.PERSIST] = 1
        starter.running[Service.PERSIST].end(1)
        await await_for(lambda: "given up" in supervisor.states()[Service.PERSIST], what="persist to be given up")
        assert {supervisor.states()[each] for each in START_ORDER if each is not Service.PERSIST} == {"ready"}
        await supervisor.stop()

    asyncio.run(first_start())
    asyncio.run(later())


def test_a_service_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time limit, and it is said."""
    monkeypatch.setattr("cli.joblet.supervisor.STOP_TIMEOUT_S", 0.02)

    class Stubborn(FakeProcess):
        def signal(self, number: signal.Signals) -> None:
            if number is signal.SIGKILL:
                super().signal(number)

    async def scenario() -> tuple[list[str], list[str]]:
        supervisor, starter, said = supervised()
        await supervisor.start()
        starter.running[Service.API].__class__ = Stubborn
        await supervisor.stop()
        return starter.events, said

    events, said = asyncio.run(scenario())
    assert "SIGKILL api" in events
    assert any("did not end within" in line for line in said)


def test_readiness_is_believed_only_from_the_process_itself() -> None:
    """A notification of another pid, or of another kind, changes nothing."""

    async def scenario() -> None:
        supervisor, starter, _ = supervised()

        def misheard(pid: int, _state: str) -> None:
            supervisor.heard(pid + 5000, "READY=1")
            supervisor.heard(pid, "STATUS=x")

        starter.heard = misheard
        starting = asyncio.create_task(supervisor.start())
        await await_for(lambda: supervisor.states()[Service.VOLUMES] == "starting", what="volumes to start")
        supervisor.heard(1, "READY=1")
        assert supervisor.states()[Service.VOLUMES] == "starting"
        starting.cancel()
        await supervisor.stop()

    asyncio.run(scenario())


def test_pauses_grow_to_a_bound_and_begin_again_after_calm() -> None:
    """A service that was ready is never given up, however often it is killed."""
    policy = RestartPolicy()
    killed = Ended(status=-signal.SIGKILL, lived_s=0.5, was_ready=True)
    pauses = [decision.pause_s for _ in range(50) if isinstance(decision := policy.after(killed), Restart)]
    assert len(pauses) == 50
    assert pauses[0] == PAUSE_FIRST_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_MAX_S
    assert policy.after(killed._replace(lived_s=CALM_S)) == Restart(PAUSE_FIRST_S)


def test_only_ends_by_itself_before_ready_count_against_a_service() -> None:
    """Being killed from outside while starting does not; being ready once wipes the slate."""
    policy = RestartPolicy()
    broken = Ended(status=1, lived_s=0.1, was_ready=False)
    for _ in range(20):
        assert isinstance(policy.after(broken._replace(status=-signal.SIGKILL)), Restart)
    for _ in range(ATTEMPTS_MAX - 1):
        assert isinstance(policy.after(broken), Restart)
    assert isinstance(policy.after(broken._replace(was_ready=True)), Restart)
    decisions = [policy.after(broken) for _ in range(ATTEMPTS_MAX)]
    assert isinstance(decisions[-1], GiveUp)
    assert all(isinstance(decision, Restart) for decision in decisions[:-1])
