"""When jobs are measured, without waiting: the clock is the test's."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from common.identifiers import JobId, new_job_id
from common.messages.jobs import Limits
from common.messages.logs import StoreMetric
from services.executor.cgroups.memory import MemoryDriver
from services.executor.sampler import Counters, Sampler, Schedule, no_network
from tests.waiting import await_for

MS = 1_000_000
INTERVAL_MS = 5_000


class Bench:
    """A sampler over a driver and a clock of the test's own."""

    def __init__(self, counters: Counters = no_network) -> None:
        self.now_ns = 0
        self.driver = MemoryDriver()
        self.emitted: list[StoreMetric] = []
        self.sampler = Sampler(
            self.driver,
            self.emitted.append,
            interval_ms=INTERVAL_MS,
            counters=counters,
            clock_ns=lambda: self.now_ns,
            wall_ns=lambda: self.now_ns + 10**18,
        )

    def start(self, *, known: bool = True) -> JobId:
        """A running job with its groups."""
        job = new_job_id()
        self.driver.create(self.driver.plan(job, Limits()))
        self.sampler.add(job, started_at_ns=self.now_ns + 10**18 if known else None)
        return job

    def at(self, ms: int) -> list[StoreMetric]:
        """What is emitted when the clock reaches `ms`."""
        self.emitted.clear()
        self.now_ns = ms * MS
        self.sampler.tick()
        return list(self.emitted)


def test_one_sample_an_interval() -> None:
    """A job is measured one interval after its start and then every interval; missed ones are not made up for."""
    bench = Bench()
    job = bench.start()
    assert bench.at(4_999) == []
    assert [sample.job for sample in bench.at(5_000)] == [job]
    assert bench.at(9_999) == []
    assert len(bench.at(10_000)) == 1
    assert len(bench.at(31_000)) == 1
    assert bench.at(34_999) == []
    assert len(bench.at(35_000)) == 1


def test_cpu_share_from_the_start() -> None:
    """The first sample's share counts from the job's start, the later ones from the sample before."""
    bench = Bench()
    job = bench.start()
    bench.driver.use(job, 2_500_000)
    (first,) = bench.at(5_000)
    bench.driver.use(job, 3_000_000)
    (second,) = bench.at(10_000)
    assert (first.cpu_percent, second.cpu_percent) == (50.0, 10.0)
    assert first.time_ns == 10**18 + 5_000 * MS


def test_a_job_taken_up_again() -> None:
    """After a restart nobody knows what the job had used before: the first measurement sets that and is not emitted."""
    bench = Bench()
    job = bench.start(known=False)
    bench.driver.use(job, 60_000_000)
    assert bench.at(5_000) == []
    bench.driver.use(job, 61_000_000)
    (sample,) = bench.at(10_000)
    assert sample.cpu_percent == 20.0


def test_many_taken_up_together_are_spread() -> None:
    """A thousand jobs that are taken up at once are not measured at one moment."""
    bench = Bench()
    for _ in range(1000):
        bench.start(known=False)
    most = 0
    for ms in range(0, INTERVAL_MS + 1, 100):
        bench.now_ns = ms * MS
        most = max(most, bench.sampler.tick())
    assert most <= 100


def test_one_that_fails_does_not_hurt_the_others() -> None:
    """A job whose counters cannot be read is told about; the others are measured, and it is tried again."""
    bench = Bench()
    jobs = [bench.start() for _ in range(3)]
    bench.driver.broken = {jobs[1]}
    assert {sample.job for sample in bench.at(5_000)} == {jobs[0], jobs[2]}
    bench.driver.broken.clear()
    assert {sample.job for sample in bench.at(10_000)} == set(jobs)


def network(sample: StoreMetric) -> tuple[int, int]:
    """What the sample says of the network: received, sent."""
    return sample.network_rx_bytes, sample.network_tx_bytes


def test_network_counters() -> None:
    """Bytes received and sent stand in the samples; when nothing counts any more the last ones stay."""
    counted: list[tuple[int, int] | None] = [(10, 20), None, (30, 40)]
    bench = Bench(lambda _job: counted.pop(0))
    bench.start()
    told = [network(sample) for ms in (5_000, 10_000, 15_000) for sample in bench.at(ms)]
    assert told == [(10, 20), (10, 20), (30, 40)]


def test_network_counters_that_cannot_be_read() -> None:
    """The rest of the sample is told all the same."""

    def broken(_job: JobId) -> tuple[int, int] | None:
        raise OSError(5, "Input/output error")

    bench = Bench(broken)
    bench.start()
    (sample,) = bench.at(5_000)
    assert network(sample) == (0, 0)


def test_a_group_that_is_gone() -> None:
    """A job whose groups went between two samples emits nothing more."""
    bench = Bench()
    job = bench.start()
    bench.driver.remove(job)
    assert bench.at(5_000) == []


def test_the_last_sample() -> None:
    """finish() measures once more and then never again; twice is once."""
    bench = Bench()
    job = bench.start()
    bench.now_ns = 1_000 * MS
    bench.driver.use(job, 1_000_000)
    bench.sampler.finish(job)
    bench.sampler.finish(job)
    assert [(sample.job, sample.cpu_percent) for sample in bench.emitted] == [(job, 100.0)]
    assert bench.at(60_000) == []


def test_added_twice_is_added_once() -> None:
    """A job has one place in the schedule."""
    bench = Bench()
    job = bench.start()
    bench.now_ns = 1_000 * MS
    bench.sampler.add(job, started_at_ns=5)
    assert len(bench.at(5_000)) == 1
    assert bench.at(6_000) == []


def test_run_wakes_for_a_new_job() -> None:
    """The loop sleeps without jobs and begins to measure when one comes; it ends by cancellation."""

    async def scenario() -> None:
        driver = MemoryDriver()
        emitted: list[StoreMetric] = []
        sampler = Sampler(driver, emitted.append, interval_ms=1)
        running = asyncio.create_task(sampler.run())
        await asyncio.sleep(0)
        job = new_job_id()
        driver.create(driver.plan(job, Limits()))
        sampler.add(job, started_at_ns=1)
        await await_for(lambda: len(emitted) >= 3, what="three samples")
        sampler.finish(job)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove", "tick"]), st.integers(min_value=0, max_value=5)),
        max_size=60,
    )
)
def test_schedule_against_a_model(steps: list[tuple[str, int]]) -> None:
    """Whatever is added and removed in whatever order, a job is due exactly at its multiples of the interval."""
    schedule = Schedule(10)
    model: dict[JobId, int] = {}
    now_ns = 0
    for verb, number in steps:
        job = JobId(str(number))
        if verb == "add":
            schedule.add(job, now_ns=now_ns)
            model.setdefault(job, now_ns + 10)
            continue
        if verb == "remove":
            schedule.remove(job)
            model.pop(job, None)
            continue
        now_ns += number
        due = {job for job, due_ns in model.items() if due_ns <= now_ns}
        taken = schedule.take_due(now_ns=now_ns)
        assert (set(taken), len(taken)) == (due, len(due))
        for job in due:
            model[job] += 10
        assert schedule.next_due_ns() == min(model.values(), default=None)
