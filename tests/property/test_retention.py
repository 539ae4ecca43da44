"""Whatever is stored and whatever the rules: nothing that runs is touched, no more goes than must, and it is enough."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.identifiers import JobId
from services.persist import retention
from services.persist.retention import PLAUSIBLE_FROM_NS, Removal, Rule, Rules, StoredJob

NOW_NS = PLAUSIBLE_FROM_NS + 1000


one_job = st.builds(
    StoredJob,
    job=st.just(JobId("")),
    owner=st.sampled_from(["", "ann", "bob"]),
    ended_at_ns=st.integers(PLAUSIBLE_FROM_NS, NOW_NS),
    ended=st.sampled_from([True, True, False]),
    log_bytes=st.integers(1, 50),
    metric_bytes=st.integers(0, 10),
    disk_bytes=st.just(0),
    trimmed_bytes=st.none() | st.integers(0, 49),
)


def _numbered(jobs: list[StoredJob]) -> list[StoredJob]:
    """Ids of their own, room on disk as large as the files, and a trim that gains something or nothing."""
    return [
        job._replace(
            job=JobId(f"{number:08}"),
            disk_bytes=job.size_bytes,
            trimmed_bytes=None if job.trimmed_bytes is None else min(job.trimmed_bytes, job.log_bytes - 1),
        )
        for number, job in enumerate(jobs)
    ]


job_lists = st.lists(one_job, max_size=12).map(_numbered)
limits = st.just(0) | st.integers(1, 200)
rule_sets = st.builds(Rules, st.just(0) | st.integers(1, 1000), limits, limits, limits, limits)


def decided(jobs: list[StoredJob], rules: Rules, free: int, *, believed: bool = True) -> list[Removal]:
    """The plan."""
    return retention.plan(jobs, rules, free_bytes=free, now_ns=NOW_NS, clock_believed=believed)


def after(jobs: list[StoredJob], removals: list[Removal]) -> list[StoredJob]:
    """What is stored when they are carried out."""
    whole = {removal.job for removal in removals if not removal.trims}
    trimmed = {removal.job: removal.size_bytes for removal in removals if removal.trims}
    return [
        job._replace(
            log_bytes=job.log_bytes - trimmed.get(job.job, 0),
            disk_bytes=job.disk_bytes - trimmed.get(job.job, 0),
            trimmed_bytes=None if job.job in trimmed else job.trimmed_bytes,
        )
        for job in jobs
        if job.job not in whole
    ]


def owners(jobs: list[StoredJob]) -> Counter[str]:
    """Bytes of each owner."""
    counted: Counter[str] = Counter()
    for job in jobs:
        counted[job.owner] += job.size_bytes
    return counted


def free_after(free: int, jobs: list[StoredJob], left: list[StoredJob]) -> int:
    """What is free then."""
    return free + sum(job.disk_bytes for job in jobs) - sum(job.disk_bytes for job in left)


@pytest.mark.requirement("S0.73")
@given(jobs=job_lists, rules=rule_sets, free=st.integers(0, 200), believed=st.booleans())
def test_what_must_hold_of_every_plan(jobs: list[StoredJob], rules: Rules, free: int, believed: bool) -> None:  # noqa: FBT001
    """Running jobs stay; each job at most once; whole jobs oldest first; enough, or nothing removable is left."""
    removals = decided(jobs, rules, free, believed=believed)
    by_id = {job.job: job for job in jobs}
    assert all(by_id[removal.job].ended for removal in removals)
    assert len({removal.job for removal in removals}) == len(removals)
    for kind in (False, True):
        order = [(removal.ended_at_ns, removal.job) for removal in removals if removal.trims is kind]
        assert order == sorted(order)
    left = after(jobs, removals)
    ended = [job for job in left if job.ended]
    if rules.age_ns and believed:
        assert all(job.ended_at_ns >= NOW_NS - rules.age_ns for job in ended)
    if not believed:
        assert Rule.AGE not in {removal.why for removal in removals}
    if rules.job_bytes:
        assert all(job.log_bytes <= rules.job_bytes or job.trimmed_bytes is None for job in ended)
    if rules.owner_bytes:
        for owner, size in owners(left).items():
            assert owner == "" or size <= rules.owner_bytes or not any(job.owner == owner for job in ended)
    if rules.total_bytes:
        assert sum(job.size_bytes for job in left) <= rules.total_bytes or not ended
    if rules.free_bytes:
        assert free_after(free, jobs, left) >= rules.free_bytes or not any(job.disk_bytes for job in ended)


@given(jobs=job_lists, rules=rule_sets, free=st.integers(0, 200))
def test_a_second_plan_finds_nothing_to_do(jobs: list[StoredJob], rules: Rules, free: int) -> None:
    """Carried out, the rules hold; they do not eat on and on."""
    left = after(jobs, decided(jobs, rules, free))
    assert decided(left, rules, free_after(free, jobs, left)) == []


@given(jobs=job_lists, rule=st.sampled_from(list(Rule)), limit=st.integers(1, 200), free=st.integers(0, 200))
def test_no_more_than_needed(jobs: list[StoredJob], rule: Rule, limit: int, free: int) -> None:
    """With one rule alone: without the newest removal it would not hold, and nothing older was passed over."""
    field = "age_ns" if rule is Rule.AGE else rule.value
    removals = decided(jobs, Rules()._replace(**{field: limit}), free)
    by_id = {job.job: job for job in jobs}
    if not removals:
        return
    newest = by_id[removals[-1].job]
    left = [*after(jobs, removals), newest] if not removals[-1].trims else jobs
    match rule:
        case Rule.AGE:
            assert all(by_id[removal.job].ended_at_ns < NOW_NS - limit for removal in removals)
        case Rule.JOB_BYTES:
            assert all(by_id[removal.job].log_bytes > limit for removal in removals)
        case Rule.OWNER_BYTES:
            assert owners(left)[newest.owner] > limit
        case Rule.TOTAL_BYTES:
            assert sum(job.size_bytes for job in left) > limit
        case Rule.FREE_BYTES:
            assert free_after(free, jobs, left) < limit
    if rule in {Rule.TOTAL_BYTES, Rule.FREE_BYTES}:
        gone = {removal.job for removal in removals}
        assert all(
            job.job in gone or not job.ended or (job.ended_at_ns, job.job) > (newest.ended_at_ns, newest.job)
            for job in jobs
        )
