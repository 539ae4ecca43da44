"""Whatever the operator sets and however callers call: nobody has more calls than his rate, and nobody fewer."""

from typing import Final

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.settings import Quota as Values
from common.config.settings import Quotas as QuotaSettings
from common.config.settings import RoleQuotas
from services.api.identity import Role
from services.api.quotas import OF_RUNNERS, RUNNERS, Quota, bound_of
from services.api.rates import SECOND_NS, Buckets

OWNERS: Final = ("ann", "bob", "carol")
pauses = st.integers(0, 3) | st.integers(0, SECOND_NS // 4) | st.integers(0, 5 * SECOND_NS)
calls = st.lists(st.tuples(pauses, st.sampled_from(OWNERS)), max_size=300)
bursts = st.lists(st.tuples(pauses, st.sampled_from(OWNERS), st.integers(1, 40)), max_size=30).map(
    lambda found: [one for pause, owner, many in found for one in [(pause, owner), *[(0, owner)] * (many - 1)]]
)


@settings(max_examples=200, deadline=None)
@given(per_s=st.integers(1, 30) | st.integers(1, 10**10), asked=calls | bursts)
def test_never_more_than_the_rate_and_a_second_of_it(per_s: int, asked: list[tuple[int, str]]) -> None:
    """Between any two admitted calls of an owner there were at most rate × time + rate of them."""
    buckets, now_ns = Buckets(), 10**15
    admitted: dict[str, list[int]] = {owner: [] for owner in OWNERS}
    for pause_ns, owner in asked:
        now_ns += pause_ns
        if buckets.take(owner, per_s, now_ns) == 0:
            admitted[owner].append(now_ns)
    for times in admitted.values():
        for first, since_ns in enumerate(times):
            for last in range(first, len(times)):
                assert (last - first + 1) * SECOND_NS <= per_s * (times[last] - since_ns) + per_s * SECOND_NS


@settings(max_examples=200, deadline=None)
@given(per_s=st.integers(1, 30) | st.integers(1, 10**10), asked=calls | bursts)
def test_who_waits_as_long_as_he_is_told_is_admitted(per_s: int, asked: list[tuple[int, str]]) -> None:
    """The time in a refusal is the real one: then it works, a nanosecond before it does not; others change nothing."""
    buckets, now_ns = Buckets(), 10**15
    for pause_ns, owner in asked:
        now_ns += pause_ns
        missing_ns = buckets.take(owner, per_s, now_ns)
        if missing_ns:
            assert missing_ns <= -(-SECOND_NS // per_s)
            buckets.take("dave", per_s, now_ns)
            assert buckets.take(owner, per_s, now_ns + missing_ns - 1) == 1
            now_ns += missing_ns
            assert buckets.take(owner, per_s, now_ns) == 0


@settings(max_examples=100, deadline=None)
@given(asked=st.lists(st.tuples(pauses, st.integers(0, 10**6), st.integers(1, 50)), max_size=200))
def test_who_is_idle_is_nobody(asked: list[tuple[int, int, int]]) -> None:
    """Never more owners than called; and two calls, a second after the last, forget two."""
    buckets, now_ns = Buckets(), 10**15
    for pause_ns, number, per_s in asked:
        now_ns += pause_ns
        buckets.take(str(number), per_s, now_ns)
    assert len(buckets) <= len({number for _, number, _ in asked})
    for _ in range(len(asked)):
        now_ns += 2 * SECOND_NS
        buckets.take("ann", 1, now_ns)
    assert len(buckets) <= 1


values = st.fixed_dictionaries({}, optional={quota.value: st.integers(1, 5) for quota in Quota})
tables = st.builds(
    lambda everybody, roles: msgspec.convert({**everybody, "roles": roles}, QuotaSettings),
    values,
    st.fixed_dictionaries({}, optional={role.value: values for role in Role}),
)


@settings(max_examples=300, deadline=None)
@given(table=tables, roles=st.sets(st.sampled_from(list(Role)), min_size=1), quota=st.sampled_from(list(Quota)))
def test_another_role_never_takes_away(table: QuotaSettings, roles: set[Role], quota: Quota) -> None:
    """Of one role: its own value, else everybody's. Of several: the largest, unless one has none."""
    counting = roles if quota not in OF_RUNNERS else roles & RUNNERS
    if not counting:
        return
    of_each = {role: own(table, role, quota) for role in counting}
    found = bound_of(quota, roles, table)
    if None in of_each.values():
        assert found is None
        return
    assert found is not None
    assert found.most == max(most for most in of_each.values() if most is not None)
    named = {f"joblet.quotas.{quota}", *(f"joblet.quotas.roles.{role}.{quota}" for role in counting)}
    assert found.setting in named


def own(table: QuotaSettings, role: Role, quota: Quota) -> int | None:
    """The value for one role, read from the file's own structure."""
    section: Values = getattr(table.roles, role)
    shown: dict[str, int | None] = msgspec.to_builtins(section)
    value = shown[quota]
    everybody: int | None = msgspec.to_builtins(table)[quota]
    return everybody if value is None else value


def test_the_names_are_those_of_the_file() -> None:
    """A quota that is added to the settings and not here fails."""
    names = [field.name for field in msgspec.structs.fields(Values)]
    assert names == list(Quota)
    assert [field.name for field in msgspec.structs.fields(RoleQuotas)] == list(Role)
