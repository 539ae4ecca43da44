"""Quotas: which value counts for whom; calls, streams and uploads of one owner; how refusals are audited."""

from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
import pytest

from common.config.layout import layout_of
from common.config.settings import Joblet, RoleQuotas, Settings, Uploads
from common.config.settings import Quota as Values
from common.config.settings import Quotas as QuotaSettings
from common.errors import JobletError, Reason
from services.api.audit import Decision
from services.api.calls import Call
from services.api.capacity import OWNER_CALLS_MAX, Capacity
from services.api.identity import Principal, Role
from services.api.permissions import Permission, Rule
from services.api.quotas import OF_RUNNERS, Bound, Quota, Quotas, bound_of
from services.api.rates import OWNERS_MAX, SECOND_NS, Buckets, Rates, Refusals
from services.api.server import UNARY_CALLS_MAX
from services.api.uploads.registry import Registry

STREAM, UNARY = Rule(Permission.READ, streams=True), Rule(Permission.READ)
A, W, U, R = Role.ADMIN, Role.WRITER, Role.USER, Role.READER


def who(name: str, *roles: Role) -> Principal:
    """A caller."""
    return Principal(name, frozenset(roles or {U}), serial="1", scheme="organization")


OVERLAID: Final = QuotaSettings(
    running_jobs=10,
    calls_per_s=5,
    streams=3,
    roles=RoleQuotas(
        admin=Values(running_jobs=100, streams=2),
        writer=Values(calls_per_s=50, upload_bytes=1000),
        user=Values(running_jobs=2, queued_jobs=7, upload_bytes=500),
        reader=Values(calls_per_s=1, streams=1),
    ),
)
EVERYBODY, OF_ROLE = "joblet.quotas.{}", "joblet.quotas.roles.{}.{}"


@pytest.mark.parametrize(
    ("quota", "roles", "most", "setting"),
    [
        # a role's own value comes before everybody's, also when it is smaller
        (Quota.RUNNING_JOBS, {A}, 100, OF_ROLE.format("admin", "running_jobs")),
        (Quota.RUNNING_JOBS, {W}, 10, EVERYBODY.format("running_jobs")),
        (Quota.RUNNING_JOBS, {U}, 2, OF_ROLE.format("user", "running_jobs")),
        (Quota.STREAMS, {A}, 2, OF_ROLE.format("admin", "streams")),
        (Quota.STREAMS, {W}, 3, EVERYBODY.format("streams")),
        (Quota.STREAMS, {R}, 1, OF_ROLE.format("reader", "streams")),
        (Quota.CALLS_PER_S, {U}, 5, EVERYBODY.format("calls_per_s")),
        (Quota.CALLS_PER_S, {R}, 1, OF_ROLE.format("reader", "calls_per_s")),
        # of several roles the most generous
        (Quota.RUNNING_JOBS, {U, W}, 10, EVERYBODY.format("running_jobs")),
        (Quota.RUNNING_JOBS, {U, W, A}, 100, OF_ROLE.format("admin", "running_jobs")),
        (Quota.STREAMS, {A, R}, 2, OF_ROLE.format("admin", "streams")),
        (Quota.STREAMS, {A, U, R}, 3, EVERYBODY.format("streams")),
        (Quota.CALLS_PER_S, {R, U}, 5, EVERYBODY.format("calls_per_s")),
        (Quota.CALLS_PER_S, {R, W}, 50, OF_ROLE.format("writer", "calls_per_s")),
        (Quota.UPLOAD_BYTES, {U, W}, 1000, OF_ROLE.format("writer", "upload_bytes")),
        # one who runs nothing does not widen what another may run
        (Quota.RUNNING_JOBS, {U, R}, 2, OF_ROLE.format("user", "running_jobs")),
        (Quota.QUEUED_JOBS, {U, R}, 7, OF_ROLE.format("user", "queued_jobs")),
        (Quota.UPLOAD_BYTES, {U, R}, 500, OF_ROLE.format("user", "upload_bytes")),
        # no bound beats any number
        (Quota.QUEUED_JOBS, {U}, 7, OF_ROLE.format("user", "queued_jobs")),
        (Quota.QUEUED_JOBS, {W}, None, None),
        (Quota.QUEUED_JOBS, {U, W}, None, None),
        (Quota.UPLOAD_BYTES, {A}, None, None),
        (Quota.UPLOAD_BYTES, {A, U, W}, None, None),
    ],
)
def test_which_value_counts(quota: Quota, roles: set[Role], most: int | None, setting: str | None) -> None:
    """Roles over everybody, the most generous of several roles, None above all; and the key that said so."""
    found = bound_of(quota, roles, OVERLAID)
    assert (found and found.most, found and found.setting) == (most, setting)
    assert Quotas(OVERLAID).most(quota, frozenset(roles)) == most


@pytest.mark.parametrize("quota", list(Quota))
def test_nothing_is_bounded_by_default(quota: Quota) -> None:
    """Whoever sets no quota has none; what everybody has, every role has that may use it."""
    for role in Role:
        if role is R and quota in OF_RUNNERS:
            continue
        assert bound_of(quota, {role}, QuotaSettings()) is None
        assert bound_of(quota, {role}, msgspec.convert({quota.value: 4}, QuotaSettings)) == Bound(
            4, f"joblet.quotas.{quota}"
        )


def test_a_refusal_says_the_bound_who_set_it_and_what_to_do() -> None:
    """RESOURCE_EXHAUSTED that may be tried again, after a time where that is known."""
    refusal = Bound(5, "joblet.quotas.streams").refusal("ann has 5 streams open", "end one of them first")
    assert (refusal.reason, refusal.retryable, refusal.retry_after_s) == (Reason.EXHAUSTED, True, None)
    assert str(refusal) == (
        "ann has 5 streams open: the node's operator set joblet.quotas.streams to 5; end one of them first, or ask for "
        "more"
    )


class Book:
    """An audit log in memory."""

    def __init__(self) -> None:
        self.lines: list[Decision] = []

    def record(self, decision: Decision) -> None:
        """Keep it."""
        self.lines.append(decision)

    def read(self) -> list[tuple[str, str, str]]:
        """Who, outcome and why of each line."""
        return [(line.who, line.outcome, line.why) for line in self.lines]


class Clock:
    """A clock that the test moves, ns."""

    def __init__(self) -> None:
        self.now_ns = 10**15

    def __call__(self) -> int:
        """The present time."""
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.now_ns += round(seconds * SECOND_NS)


def call(name: str, book: Book, *roles: Role) -> Call:
    """A call of ListJobs."""
    return Call(
        principal=who(name, *roles), method="/joblet.v1.JobService/ListJobs", rule=UNARY, peer="ipv4:x", audit_log=book
    )


def admitted(rates: Rates, one: Call) -> float | None:
    """None when the call may go on, else how long it is told to wait, seconds."""
    try:
        rates.admit(one)
    except JobletError as error:
        if error.reason is not Reason.EXHAUSTED:
            raise
        return error.retry_after_s
    return None


def test_a_bucket_gives_a_second_at_once_and_then_its_rate() -> None:
    """Full at first; the time that is told is the time after which it works, and not a nanosecond earlier."""
    clock, book = Clock(), Book()
    rates = Rates(Quotas(QuotaSettings(calls_per_s=4)), clock_ns=clock)
    assert [admitted(rates, call("ann", book)) for _ in range(5)] == [None] * 4 + [0.25]
    clock.now_ns += 249_999_999
    assert admitted(rates, call("ann", book)) == 1e-9
    clock.now_ns += 1
    assert [admitted(rates, call("ann", book)) for _ in range(2)] == [None, 0.25]
    clock.pass_s(0.6)
    assert [admitted(rates, call("ann", book)) for _ in range(3)] == [None, None, pytest.approx(0.15)]
    clock.pass_s(3600)
    assert [admitted(rates, call("ann", book)) for _ in range(5)] == [None] * 4 + [0.25]


@pytest.mark.parametrize("per_s", [1, 2, 3, 7, 1000, 999_999_937, 10**9, 3 * 10**9])
def test_a_full_bucket_holds_a_second_of_calls(per_s: int) -> None:
    """Also where a second is no whole number of tokens; tried as far as a test can count."""
    buckets = Buckets()
    for _ in range(min(per_s, 2000)):
        assert buckets.take("ann", per_s, 10**15) == 0
    if per_s <= 2000:
        assert buckets.take("ann", per_s, 10**15) == -(-SECOND_NS // per_s)


@pytest.mark.threat("D18")
def test_one_owners_flood_is_his_own() -> None:
    """Another owner's bucket is full while one is refused; who has no quota is never refused."""
    clock, book = Clock(), Book()
    quotas = Quotas(QuotaSettings(calls_per_s=3, roles=RoleQuotas(admin=Values(calls_per_s=10**6))))
    rates = Rates(quotas, clock_ns=clock)
    flood = [admitted(rates, call("ann", book)) for _ in range(1000)]
    assert flood[:3] == [None] * 3
    assert None not in flood[3:]
    assert [admitted(rates, call("bob", book)) for _ in range(3)] == [None] * 3
    assert {admitted(rates, call("root", book, A)) for _ in range(1000)} == {None}
    unbounded = Rates(Quotas(QuotaSettings(roles=RoleQuotas(user=Values(calls_per_s=1)))), clock_ns=clock)
    assert {admitted(unbounded, call("ann", book, U, W)) for _ in range(1000)} == {None}
    assert len(unbounded.buckets) == 0


def test_certificates_of_one_owner_share_his_second() -> None:
    """A second certificate with another role is no second bucket: each call takes its part of the one."""
    clock, book = Clock(), Book()
    quotas = Quotas(QuotaSettings(calls_per_s=2, roles=RoleQuotas(admin=Values(calls_per_s=10))))
    rates = Rates(quotas, clock_ns=clock)
    assert [admitted(rates, call("ann", book, A)) for _ in range(5)] == [None] * 5  # half a second of it
    assert [admitted(rates, call("ann", book)) for _ in range(2)] == [None, 0.5]
    assert admitted(rates, call("ann", book, A)) == pytest.approx(0.1)


@pytest.mark.threat("D18")
def test_idle_owners_are_forgotten() -> None:
    """100,000 owners, a thousand in a second: no more are remembered than called within the last one or so.

    A crowd before them is forgotten as well, although new ones come all the time.
    """
    buckets, most = Buckets(), 0
    for number in range(5000):
        buckets.take(f"crowd-{number}", 1, 10**15)
    for number in range(100_000):
        buckets.take(f"owner-{number}", 1, 10**15 + number * SECOND_NS // 1000)
        most = max(most, len(buckets)) if number > 7000 else 0
    assert most <= 1002
    buckets.take("ann", 1, 10**18)
    buckets.take("bob", 1, 10**18)
    for number in range(1000):
        buckets.take("ann", 1000, 10**18 + 2 * SECOND_NS + number)
    assert len(buckets) == 1


@pytest.mark.threat("D18")
def test_owners_are_bounded_even_at_one_instant() -> None:
    """100,000 owners at once: the bound holds, and who called last is still held to his rate."""
    buckets = Buckets()
    for number in range(100_000):
        assert buckets.take(f"owner-{number}", 1, 10**15) == 0
    assert len(buckets) <= OWNERS_MAX
    assert buckets.take("owner-99999", 1, 10**15) == SECOND_NS


def test_refused_calls_have_a_line_a_second_with_their_number() -> None:
    """The first at once; the rest counted, and written when a second is over or at the end. None is forgotten."""
    clock, book = Clock(), Book()
    rates = Rates(Quotas(QuotaSettings(calls_per_s=1)), clock_ns=clock)
    why = "ann makes more than 1 calls a second; calls refused: {}"
    for _ in range(101):
        admitted(rates, call("ann", book))
    assert book.read() == [("ann", "exhausted", why.format(1))]
    rates.refusals.settle(clock())
    assert len(book.lines) == 1
    clock.pass_s(0.999)
    admitted(rates, call("ann", book))
    rates.refusals.settle(clock())
    assert len(book.lines) == 1
    clock.pass_s(0.0005)
    admitted(rates, call("ann", book))
    clock.pass_s(0.0005)
    rates.refusals.settle(clock())
    assert [line[2] for line in book.read()] == [why.format(1), why.format(101)]
    clock.pass_s(1)
    rates.refusals.settle(clock())
    assert (len(rates.refusals), len(book.lines)) == (0, 2)
    for _ in range(3):
        admitted(rates, call("bob", book))
    rates.close()
    assert book.read()[2:] == [
        ("bob", "exhausted", "bob makes more than 1 calls a second; calls refused: 1"),
        ("bob", "exhausted", "bob makes more than 1 calls a second; calls refused: 1"),
    ]
    assert {(line.method, line.peer) for line in book.lines} == {("/joblet.v1.JobService/ListJobs", "ipv4:x")}


def test_a_long_flood_is_as_many_lines_as_seconds() -> None:
    """Ten seconds of 1000 calls each: a line a second, whose numbers add up to all that were refused."""
    clock, book = Clock(), Book()
    rates = Rates(Quotas(QuotaSettings(calls_per_s=10)), clock_ns=clock)
    refused = 0
    for number in range(10_000):
        refused += admitted(rates, call("ann", book)) is not None
        clock.pass_s(0.001)
        if number % 300 == 0:
            rates.refusals.settle(clock())
    rates.close()
    assert 10 <= len(book.lines) <= 11
    assert sum(int(line.why.rpartition(" ")[2]) for line in book.lines) == refused


def test_memory_for_refusals_is_bounded() -> None:
    """Of 20,000 refused owners at one instant each has his line, and no more are remembered than the bound."""
    refusals, book = Refusals(), Book()
    for number in range(20_000):
        refusals.note(call(f"owner-{number}", book), "why", 10**15)
    assert len(refusals) <= OWNERS_MAX
    assert len(book.lines) == 20_000


def test_streams_of_one_owner() -> None:
    """At his bound he is refused and others are not; a place that is left is free again; the node's bound holds too."""
    capacity = Capacity(4, Quotas(QuotaSettings(streams=2, roles=RoleQuotas(admin=Values(streams=100)))))
    with ExitStack() as held:
        first = held.enter_context(ExitStack())
        first.enter_context(capacity.of(STREAM, who("ann")))
        held.enter_context(capacity.of(STREAM, who("ann")))
        with pytest.raises(JobletError) as refused, capacity.of(STREAM, who("ann")):
            pytest.fail("the third stream must not be admitted")
        assert refused.value.reason is Reason.EXHAUSTED
        assert str(refused.value) == (
            "ann has 2 streams open: the node's operator set joblet.quotas.streams to 2; end one of them first, or ask "
            "for more"
        )
        with capacity.of(UNARY, who("ann")):
            held.enter_context(capacity.of(STREAM, who("bob")))
        held.enter_context(capacity.of(STREAM, who("root", A)))
        assert capacity.streams == 4
        for name, role in (("root", A), ("carol", U)):
            with pytest.raises(JobletError) as full, capacity.of(STREAM, who(name, role)):
                pytest.fail("the fifth stream must not be admitted")
            assert full.value.message == "Max capacity reached"
        first.close()
        with capacity.of(STREAM, who("ann")):
            assert capacity.streams == 4
    assert (capacity.streams, capacity.owners) == (0, 0)


@pytest.mark.threat("D18")
def test_one_owner_cannot_take_all_calls_of_the_server() -> None:
    """Calls that wait, as WaitJob, are bounded for each owner below what the server takes of all; errors give back."""
    capacity = Capacity(1, Quotas(QuotaSettings()))
    with ExitStack() as held:
        for _ in range(OWNER_CALLS_MAX):
            held.enter_context(capacity.of(UNARY, who("ann")))
        with pytest.raises(JobletError, match="ann has 1000 calls in progress: wait") as refused:
            held.enter_context(capacity.of(UNARY, who("ann")))
        assert refused.value.reason is Reason.EXHAUSTED
        with pytest.raises(KeyError), capacity.of(UNARY, who("bob")):
            raise KeyError
        assert capacity.owners == 1
    assert capacity.owners == 0
    assert OWNER_CALLS_MAX < UNARY_CALLS_MAX


def test_uploads_of_one_owner(tmp_path: Path) -> None:
    """All that he has staged counts, exactly to the byte; what a job took, or what was removed, does not any more."""
    layout = layout_of(Settings(joblet=Joblet(base_dir=str(tmp_path))))
    layout.uploads.mkdir()
    registry = Registry(layout, Uploads())
    bound = Bound(100, "joblet.quotas.roles.user.upload_bytes")
    first_id, first = registry.begin("ann", bound)
    _, second = registry.begin("ann", bound)
    _, of_bob = registry.begin("bob", bound)
    registry.grow(first, 60)
    registry.grow(second, 40)
    with pytest.raises(JobletError) as refused:
        registry.grow(second, 1)
    assert refused.value.reason is Reason.EXHAUSTED
    assert str(refused.value) == (
        "ann would have more than 100 bytes staged: the node's operator set joblet.quotas.roles.user.upload_bytes to "
        "100; run the jobs that the staged files are for, or upload less, or ask for more"
    )
    registry.grow(of_bob, 100)
    registry.remove(first_id)
    registry.grow(second, 60)
    _, unbounded = registry.begin("ann", None)
    registry.grow(unbounded, 10**6)
