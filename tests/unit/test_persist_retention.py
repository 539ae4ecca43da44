"""What retention removes, by examples; and when it does not believe the clock. The rules at large: tests/property."""

import pytest

from common.config.settings import Retention
from common.identifiers import JobId, new_job_id
from services.persist import clock, retention
from services.persist.clock import AWAY_NS, JUMP_NS, SETTLING_NS, Reading, Watched
from services.persist.retention import DAY_NS, Removal, Rule, Rules, StoredJob

NOW_NS = 1_750_000_000 * 10**9
MINUTE_NS = 60 * 10**9


def stored(age_days: float = 0, size: int = 100, *, owner: str = "ann", ended: bool = True) -> StoredJob:
    """A job that ended so long ago, with so many bytes of logs and none of metrics."""
    ended_at_ns = NOW_NS - int(age_days * DAY_NS) if ended else 0
    return StoredJob(new_job_id(), owner if ended else "", ended_at_ns, ended, size, 0, size)


def plan(*jobs: StoredJob, rules: Rules, free_bytes: int = 10**9, believed: bool = True) -> list[tuple[JobId, Rule]]:
    """Whom the rules remove, and why."""
    removals = retention.plan(jobs, rules, free_bytes=free_bytes, now_ns=NOW_NS, clock_believed=believed)
    return [(removal.job, removal.why) for removal in removals]


def test_settings_become_rules() -> None:
    """Days become nanoseconds; what is 0 is no rule."""
    assert retention.rules_of(Retention(age_days=2, total_bytes=5)) == Rules(age_ns=2 * DAY_NS, total_bytes=5)
    assert plan(stored(9999, 10**15), rules=Rules(), free_bytes=0) == []


@pytest.mark.requirement("S0.73")
def test_old_jobs_go_by_age_and_running_ones_stay() -> None:
    """Exactly those that ended longer ago than the rule says, the oldest first."""
    old, older, young, running = stored(8), stored(30), stored(6.9), stored(ended=False)
    assert plan(old, young, running, older, rules=Rules(age_ns=7 * DAY_NS)) == [
        (older.job, Rule.AGE),
        (old.job, Rule.AGE),
    ]


@pytest.mark.requirement("S0.73")
@pytest.mark.requirement("S4.5")
def test_bytes_of_an_owner_in_total_and_free_remove_the_oldest_until_it_is_enough() -> None:
    """Each rule takes no more than it needs, from what the ones before it left."""
    ann = [stored(age, owner="ann") for age in (5, 4, 3)]
    bob = [stored(age, owner="bob") for age in (9, 2)]
    jobs = (*ann, *bob, stored(size=50, ended=False))
    assert plan(*jobs, rules=Rules(owner_bytes=200)) == [(ann[0].job, Rule.OWNER_BYTES)]
    assert plan(*jobs, rules=Rules(total_bytes=350)) == [(bob[0].job, Rule.TOTAL_BYTES), (ann[0].job, Rule.TOTAL_BYTES)]
    assert plan(*jobs, rules=Rules(owner_bytes=200, total_bytes=350)) == [
        (bob[0].job, Rule.TOTAL_BYTES),
        (ann[0].job, Rule.OWNER_BYTES),
    ]
    assert plan(*jobs, rules=Rules(free_bytes=1150), free_bytes=1000) == [
        (bob[0].job, Rule.FREE_BYTES),
        (ann[0].job, Rule.FREE_BYTES),
    ]
    assert len(plan(*jobs, rules=Rules(total_bytes=1))) == 5, "the running one stays, whatever the rule says"


def test_a_job_of_nobody_is_in_nobodys_bytes() -> None:
    """Owners of jobs from before there were summaries are not known: they are no owner of their own."""
    assert plan(*(stored(owner="", size=10**6) for _ in range(3)), rules=Rules(owner_bytes=1)) == []


@pytest.mark.requirement("S0.73")
def test_a_large_job_is_trimmed_unless_all_of_it_goes() -> None:
    """A trim counts for the rules behind it; what is removed as a whole is not trimmed, too."""
    large = stored(1, 1000)._replace(trimmed_bytes=90, metric_bytes=7)
    hopeless = stored(2, 1000)
    small = stored(3)
    found = retention.plan(
        [large, hopeless, small], Rules(job_bytes=100), free_bytes=0, now_ns=NOW_NS, clock_believed=True
    )
    assert found == [Removal(large.job, "ann", large.ended_at_ns, 910, Rule.JOB_BYTES, trims=True)]
    assert plan(large, small, rules=Rules(job_bytes=100, total_bytes=197)) == [(large.job, Rule.JOB_BYTES)]
    assert plan(large, rules=Rules(job_bytes=100, total_bytes=1)) == [(large.job, Rule.TOTAL_BYTES)]


def test_what_gives_no_room_back_is_not_removed_for_room() -> None:
    """Its files are on another file system, or take no blocks."""
    assert plan(stored()._replace(disk_bytes=0), rules=Rules(free_bytes=10), free_bytes=0) == []


@pytest.mark.threat("F29")
def test_a_clock_in_doubt_removes_nothing_for_age_and_sizes_go_on() -> None:
    """After a jump by a year everything looks old; by size the oldest still goes first."""
    jobs = [stored(400), stored(399)]
    assert plan(*jobs, rules=Rules(age_ns=DAY_NS), believed=False) == []
    assert plan(*jobs, rules=Rules(age_ns=DAY_NS, total_bytes=100), believed=False) == [(jobs[0].job, Rule.TOTAL_BYTES)]


@pytest.mark.threat("F29")
def test_a_job_that_ended_in_1970_has_no_age() -> None:
    """The clock was not set when it ended: it is the oldest by order, and of no age."""
    job = stored()._replace(ended_at_ns=60 * 10**9)
    assert plan(job, rules=Rules(age_ns=DAY_NS)) == []
    assert plan(job, stored(3), rules=Rules(total_bytes=100)) == [(job.job, Rule.TOTAL_BYTES)]


def reading(minutes: float = 0, *, jump_ns: int = 0, boot: str = "one", up_ns: int = 10**12) -> Reading:
    """Both clocks after so many minutes, the wall clock set by `jump_ns`."""
    passed_ns = int(minutes * MINUTE_NS)
    return Reading(boot=boot, steady_ns=up_ns + passed_ns, wall_ns=NOW_NS + passed_ns + jump_ns)


def looked(*readings: Reading, newest_ns: int = 0) -> Watched:
    """What is known after these looks."""
    watched: Watched | None = None
    for each in readings:
        watched = clock.look(watched, each, newest_ns=newest_ns)
    assert watched is not None
    return watched


def test_a_clock_that_goes_on_is_believed() -> None:
    """At the first look with nothing stored, with something recent, after hours, after a suspend, after NTP's step."""
    assert looked(reading()).is_believed
    assert looked(reading(), newest_ns=NOW_NS - AWAY_NS).is_believed
    assert looked(reading(), reading(5), reading(700), reading(701, jump_ns=JUMP_NS)).is_believed
    assert looked(reading(), reading(30, boot="two", up_ns=0)).is_believed, "a restart of the machine"


@pytest.mark.threat("F29")
@pytest.mark.parametrize("jump_ns", [-60 * MINUTE_NS, 365 * DAY_NS, -NOW_NS, JUMP_NS + 1, -JUMP_NS - 1])
def test_a_jump_is_in_doubt_for_a_day_of_steady_time(jump_ns: int) -> None:
    """An hour back, a year ahead, 1970: no age for 24 h without another jump; the way back is a jump, too."""
    jumped = reading(5, jump_ns=jump_ns)
    assert not looked(reading(), jumped).is_believed
    day = SETTLING_NS / MINUTE_NS
    assert not looked(reading(), jumped, reading(5 + day - 1, jump_ns=jump_ns)).is_believed
    assert looked(reading(), jumped, reading(5 + day, jump_ns=jump_ns)).is_believed
    assert not looked(reading(), jumped, reading(5 + day - 1, jump_ns=jump_ns), reading(5 + day)).is_believed
    back = clock.look(looked(reading(), jumped), reading(10), newest_ns=0)
    assert back.unsettled_ns == SETTLING_NS


@pytest.mark.threat("F29")
def test_a_jump_while_nobody_looked() -> None:
    """Before the first look ever the newest end tells, after a restart of the machine what was seen last."""
    assert not looked(reading(jump_ns=365 * DAY_NS), newest_ns=NOW_NS).is_believed
    assert not looked(reading(jump_ns=-60 * MINUTE_NS), newest_ns=NOW_NS).is_believed
    for jump_ns in (365 * DAY_NS, -60 * MINUTE_NS, -NOW_NS):
        assert not looked(reading(), reading(5, jump_ns=jump_ns, boot="two", up_ns=0)).is_believed
    doubted = looked(reading(), reading(5, jump_ns=-60 * MINUTE_NS))
    again = clock.look(doubted, reading(6, jump_ns=-60 * MINUTE_NS, boot="two", up_ns=0), newest_ns=0)
    assert again.unsettled_ns == SETTLING_NS, "time that nobody measured does not count"


def test_the_host_tells_both_clocks() -> None:
    """The steady one goes on; both are of the same machine."""
    first, second = clock.read(), clock.read()
    assert first.boot == second.boot != ""
    assert 0 <= second.steady_ns - first.steady_ns < 60 * 10**9
    assert first.wall_ns > retention.PLAUSIBLE_FROM_NS
