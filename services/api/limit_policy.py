"""What the operator's configuration makes of a job's limits, network, output and end, by its owner's roles. Pure.

Belongs here: the rules over `joblet.limits`, and defaults. Does not belong here: ranges (`common/config/limits.py`),
and whether this host can enforce what comes out (the executor, which refuses what it cannot).

    For one role    its own value of a limit, else everybody's
    Not asked for   the default, but never more than the maximum; without a default, the maximum
    Asked for       as it is up to the maximum; above it refused, never cut down in silence
    Several roles   the most generous of what each gives, among those that may run jobs; no limit beats any number

Weights and the number of processes are something even where nobody sets them; that stands in for a default.
"""

from collections.abc import Collection, Mapping
from functools import reduce
from typing import Final, NamedTuple

import msgspec

from common.config.limits import LIMIT_RANGES, checked_cpu_list
from common.config.settings import Joblet, LimitBounds, LimitPolicy, LimitValues
from common.cpulist import format_cpu_list
from common.errors import JobletError, Reason
from common.messages.jobs import Limits, Network, OnFull
from services.api.identity import Role
from services.api.permissions import Permission, roles_with

Value = int | frozenset[int] | None
"""Of a limit: a number, or the cores that may be used; None is no limit."""

FIELDS: Final = (*LIMIT_RANGES, "cpu_cores")
NORMAL_WEIGHT: Final = 100
RUNNERS: Final = tuple(roles_with(Permission.RUN))
"""Roles whose bounds count. One that may run nothing, such as reader, does not widen what another may run."""


class Policy(NamedTuple):
    """What the operator decided. `unset`: what holds for a limit that nobody sets; what is below it: likewise."""

    limits: LimitPolicy
    unset: Mapping[str, int]
    network: Network
    on_full: OnFull
    grace_ms: int


class Bound(NamedTuple):
    """Of one limit: what a job has that does not ask for it, and the most that it may ask for."""

    given: Value
    most: Value


def policy_of(settings: Joblet) -> Policy:
    """The policy that `settings` mean."""
    unset = {"cpu_weight": NORMAL_WEIGHT, "io_weight": NORMAL_WEIGHT, "pids": settings.jobs.pids}
    return Policy(
        settings.limits,
        unset,
        Network(settings.jobs.network),
        OnFull(settings.journal.on_full),
        settings.jobs.grace_ms,
    )


def applied(limits: Limits, roles: Collection[Role], policy: Policy) -> Limits:
    """`limits` as a job of a caller with these roles has them; one of the roles may run jobs.

    Raises JobletError: DENIED with limit, maximum and roles when more is asked for than they allow.
    """
    counting = [role for role in RUNNERS if role in roles]
    assert counting, "the gate lets nobody run a job who has no role for it"
    changes: dict[str, int | str] = {}
    for field in FIELDS:
        bounds = [_bound(field, role, policy) for role in counting]
        asked = _value(field, limits)
        if asked is None:
            given = reduce(_wider, (bound.given for bound in bounds))
            if given is not None and given != policy.unset.get(field):
                changes[field] = format_cpu_list(given) if isinstance(given, frozenset) else given
        else:
            most = reduce(_wider, (bound.most for bound in bounds))
            if _capped(asked, most) != asked:
                raise _above(field, asked, most, counting)
    return msgspec.structs.replace(limits, **changes)


def check_network(network: Network, roles: Collection[Role]) -> None:
    """Raise DENIED when a caller with these roles may not have this network: the host's is for admins alone."""
    if network is Network.HOST and Role.ADMIN not in roles:
        raise JobletError(
            Reason.DENIED,
            "network: mode host is for the role admin alone",
            detail="use none, isolated or bridge, or a certificate with the role admin",
        )


def _bound(field: str, role: Role, policy: Policy) -> Bound:
    own: LimitBounds = getattr(policy.limits.roles, role)
    default = _laid_over(field, own.default, policy.limits.default)
    most = _laid_over(field, own.max, policy.limits.max)
    if default is None:
        default = policy.unset.get(field)
    return Bound(_capped(default, most), most)


def _laid_over(field: str, own: LimitValues, everybody: LimitValues) -> Value:
    value = _value(field, own)
    return _value(field, everybody) if value is None else value


def _value(field: str, limits: Limits | LimitValues) -> Value:
    value: int | str | None = getattr(limits, field)
    return checked_cpu_list(value, f"limits.{field}") if isinstance(value, str) else value


def _capped(value: Value, most: Value) -> Value:
    """As much of `value` as `most` allows. Cores that have none in common with it: all that it allows."""
    match value, most:
        case frozenset() as cores, frozenset() as allowed:
            return cores & allowed or allowed
        case int() as number, int() as highest:
            return min(number, highest)
        case None, _:
            return most
        case _:
            return value


def _wider(one: Value, other: Value) -> Value:
    match one, other:
        case frozenset() as cores, frozenset() as more:
            return cores | more
        case int() as number, int() as another:
            return max(number, another)
        case _:
            return None


def _above(field: str, asked: Value, most: Value, roles: Collection[Role]) -> JobletError:
    highest, who = _text(most), " and ".join(roles)
    return JobletError(
        Reason.DENIED,
        f"limits.{field}: {_text(asked)} exceeds {highest}, the maximum for {who}",
        detail=f"ask for {highest} or less; the node's operator sets the maximum in joblet.limits",
    )


def _text(value: Value) -> str:
    return format_cpu_list(value) if isinstance(value, frozenset) else str(value)
