"""Whatever the operator configures and whoever asks: no job has more than its owner's roles allow."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.limits import LIMIT_RANGES
from common.config.settings import Joblet, Jobs, LimitBounds, LimitPolicy, LimitValues, RoleLimits
from common.cpulist import format_cpu_list, parse_cpu_list
from common.errors import JobletError, Reason
from common.messages.jobs import Limits, Network
from services.api.identity import Role
from services.api.limit_policy import RUNNERS, Policy, applied, check_network, policy_of

cores = st.frozensets(st.integers(0, 5), min_size=1).map(format_cpu_list)
numbers = {
    field: st.integers(low, min(high, low + 8)) | st.integers(low, high) for field, (low, high) in LIMIT_RANGES.items()
}
fields: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({}, optional=numbers | {"cpu_cores": cores})
values = fields.map(lambda known: LimitValues(**known))
bounds = st.builds(LimitBounds, default=values, max=values)
roles = st.builds(RoleLimits, admin=bounds, writer=bounds, user=bounds)
policies = st.builds(
    lambda limits, pids: policy_of(Joblet(limits=limits, jobs=Jobs(pids=pids))),
    st.builds(LimitPolicy, default=values, max=values, roles=roles),
    st.integers(1, 20),
)
callers = st.sets(st.sampled_from(list(Role))).filter(lambda held: not held.isdisjoint(RUNNERS))
asked = fields.map(lambda known: Limits(**known))


def of(limits: Any, field: str) -> int | frozenset[int] | None:
    """A limit in a form that `<=` compares: a number, or the cores."""
    value = getattr(limits, field)
    return parse_cpu_list(value) if field == "cpu_cores" and value is not None else value


def allowed(value: Any, field: str, role: Role, policy: Policy) -> bool:
    """Whether the maximum of this one role allows `value` (None: no limit)."""
    own = of(getattr(policy.limits.roles, role).max, field)
    most: Any = of(policy.limits.max, field) if own is None else own
    if value is None:
        value = policy.unset.get(field)
    return most is None or (value is not None and value <= most)


def decision(limits: Limits, held: set[Role], policy: Policy) -> Limits | JobletError:
    """What the job has, or the refusal."""
    try:
        return applied(limits, held, policy)
    except JobletError as error:
        return error


@pytest.mark.requirement("S2.31")
@settings(max_examples=150, deadline=None)
@given(limits=asked, held=callers, policy=policies)
def test_nobody_gets_more_than_his_roles_allow(limits: Limits, held: set[Role], policy: Policy) -> None:
    """Each limit of the outcome is within the maximum of the roles together, a reader's not counted; or refused."""
    with suppress(JobletError):
        outcome = applied(limits, held, policy)
        for field in Limits.__struct_fields__:
            value: Any = of(outcome, field)
            if isinstance(value, frozenset):
                assert all(any(allowed({core}, field, role, policy) for role in held & set(RUNNERS)) for core in value)
            else:
                assert any(allowed(value, field, role, policy) for role in held & set(RUNNERS)), field


@settings(max_examples=150, deadline=None)
@given(limits=asked, held=callers, policy=policies)
def test_what_is_asked_for_is_kept_or_refused(limits: Limits, held: set[Role], policy: Policy) -> None:
    """Never changed; a refusal is DENIED and one limit above every role's maximum is its reason."""
    outcome = decision(limits, held, policy)
    if isinstance(outcome, JobletError):
        assert outcome.reason is Reason.DENIED
        field = outcome.message.partition(":")[0].removeprefix("limits.")
        assert not any(allowed(of(limits, field), field, role, policy) for role in held & set(RUNNERS))
        return
    for field in Limits.__struct_fields__:
        if getattr(limits, field) is not None:
            assert getattr(outcome, field) == getattr(limits, field)


@settings(max_examples=150, deadline=None)
@given(limits=asked, held=callers, policy=policies)
def test_applied_twice_is_applied_once(limits: Limits, held: set[Role], policy: Policy) -> None:
    """What a job has may be asked for: `rnx job run` with the limits that `rnx job status` shows."""
    with suppress(JobletError):
        once = applied(limits, held, policy)
        assert applied(once, held, policy) == once


@settings(max_examples=150, deadline=None)
@given(held=callers, another=st.sampled_from(list(Role)), policy=policies)
def test_a_further_role_never_takes_anything_away(held: set[Role], another: Role, policy: Policy) -> None:
    """Field by field the more generous role counts; one that may run nothing changes nothing."""
    before, after = applied(Limits(), held, policy), applied(Limits(), held | {another}, policy)
    if another not in RUNNERS:
        assert after == before
    for field in Limits.__struct_fields__:
        less: Any = of(before, field)
        more: Any = of(after, field)
        unset = policy.unset.get(field)
        less, more = (unset if less is None else less), (unset if more is None else more)
        assert more is None or (less is not None and less <= more), field


@given(limits=asked, held=callers)
def test_without_configuration_nothing_changes(limits: Limits, held: set[Role]) -> None:
    """Every field of the policy is "not set" by default."""
    assert applied(limits, held, policy_of(Joblet())) == limits


@given(network=st.sampled_from(list(Network)), held=st.sets(st.sampled_from(list(Role))))
def test_the_hosts_network_is_for_admins(network: Network, held: set[Role]) -> None:
    """Every other mode is for everybody; the refusal names the role that is needed."""
    if network is not Network.HOST or Role.ADMIN in held:
        check_network(network, held)
    else:
        with pytest.raises(JobletError, match="admin") as refused:
            check_network(network, held)
        assert refused.value.reason is Reason.DENIED


def policy(**sections: Any) -> Policy:
    """A policy from the names of the configuration file."""
    return policy_of(Joblet(limits=msgspec.convert(sections, LimitPolicy)))


@pytest.mark.requirement("S2.31")
def test_the_documented_example() -> None:
    """50 % of a core, 100 MB and an io weight of 500 for whoever asks for nothing; asking for less is kept."""
    example = policy(default={"cpu_percent": 50, "memory_bytes": 100 * 2**20, "io_weight": 500})
    assert applied(Limits(), {Role.USER}, example) == Limits(cpu_percent=50, memory_bytes=100 * 2**20, io_weight=500)
    assert applied(Limits(cpu_percent=10), {Role.USER}, example).cpu_percent == 10
    assert applied(Limits(cpu_percent=400), {Role.USER}, example).cpu_percent == 400


@pytest.mark.parametrize(
    ("sections", "held", "given_limits"),
    [
        ({"default": {"pids": 9}, "max": {"pids": 5}}, {Role.USER}, Limits(pids=5)),
        ({"max": {"timeout_ms": 5, "memory_bytes": 7}}, {Role.USER}, Limits(timeout_ms=5, memory_bytes=7)),
        ({"max": {"cpu_weight": 50}}, {Role.USER}, Limits(cpu_weight=50)),
        ({"max": {"cpu_weight": 500, "pids": 5000}}, {Role.USER}, Limits()),
        ({"default": {"pids": 9}, "roles": {"user": {"default": {"pids": 7}}}}, {Role.USER}, Limits(pids=7)),
        ({"default": {"pids": 9}, "roles": {"user": {"default": {"pids": 7}}}}, {Role.WRITER}, Limits(pids=9)),
        ({"roles": {"user": {"max": {"memory_bytes": 7}}}}, {Role.USER, Role.READER}, Limits(memory_bytes=7)),
        ({"roles": {"user": {"max": {"memory_bytes": 7}}}}, {Role.USER, Role.WRITER}, Limits()),
        (
            {"roles": {"user": {"max": {"cpu_cores": "0"}}, "writer": {"max": {"cpu_cores": "1,2"}}}},
            {Role.USER, Role.WRITER},
            Limits(cpu_cores="0-2"),
        ),
        ({"default": {"cpu_cores": "0-3"}, "roles": {"user": {"max": {"cpu_cores": "2-9"}}}}, {Role.USER},
         Limits(cpu_cores="2-3")),
        ({"default": {"cpu_cores": "0"}, "roles": {"user": {"max": {"cpu_cores": "5"}}}}, {Role.USER},
         Limits(cpu_cores="5")),
    ],
)  # fmt: skip
def test_what_a_job_has_that_asks_for_nothing(sections: Any, held: set[Role], given_limits: Limits) -> None:
    """Defaults under maxima, roles over everybody, the most generous role, shares only where they must shrink."""
    assert applied(Limits(), held, policy(**sections)) == given_limits


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (Limits(memory_bytes=101), "limits.memory_bytes: 101 exceeds 100, the maximum for user"),
        (Limits(cpu_cores="0-2"), "limits.cpu_cores: 0-2 exceeds 0-1, the maximum for user"),
        (Limits(io_weight=501), "limits.io_weight: 501 exceeds 500, the maximum for user"),
    ],
)
def test_a_refusal_names_limit_maximum_and_role(limits: Limits, told: str) -> None:
    """What a person needs to ask again, or to ask his operator."""
    bounded = policy(max={"memory_bytes": 100, "cpu_cores": "0-1", "io_weight": 500})
    with pytest.raises(JobletError) as refused:
        applied(limits, {Role.USER, Role.READER}, bounded)
    assert refused.value.message == told
    assert "or less" in refused.value.detail
