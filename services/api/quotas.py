"""How much one owner may use at once: the rules over `joblet.quotas`. Pure.

Belongs here: which of the operator's values counts for a caller, and how a refusal reads. Does not belong here:
counting (`rates.py`, `capacity.py`, `uploads/registry.py`; the executor for jobs), and what the file may say
(`common/config/quotas.py`).

    For one role    its own value, else everybody's
    Several roles   the most generous value, and no bound beats any number
    Roles that run nothing, such as reader, do not count where jobs and uploads are bounded: as in `limit_policy.py`
"""

from collections.abc import Collection
from enum import StrEnum
from typing import Final, NamedTuple

from common.config import quotas as checked
from common.config import settings
from common.errors import JobletError, exhausted
from services.api.identity import Role
from services.api.permissions import Permission, roles_with


class Quota(StrEnum):
    """What is bounded; the value is the key below `joblet.quotas`."""

    RUNNING_JOBS = "running_jobs"
    QUEUED_JOBS = "queued_jobs"
    CALLS_PER_S = "calls_per_s"
    STREAMS = "streams"
    UPLOAD_BYTES = "upload_bytes"


RUNNERS: Final = frozenset(roles_with(Permission.RUN))
OF_RUNNERS: Final = frozenset(Quota(name) for name in checked.OF_RUNNERS)


class Bound(NamedTuple):
    """The most that a caller may have, and the key that says so."""

    most: int
    setting: str

    def refusal(self, what: str, advice: str, *, retry_after_s: float | None = None) -> JobletError:
        """EXHAUSTED: what is too much, who set the bound, and what to do."""
        return exhausted(
            what,
            f"the node's operator set {self.setting} to {self.most}; {advice}, or ask for more",
            retry_after_s=retry_after_s,
        )


def bound_of(quota: Quota, roles: Collection[Role], quotas: settings.Quotas) -> Bound | None:
    """What holds for a caller with these roles. None: nothing but the bounds of the node."""
    counting = [role for role in Role if role in roles and (role in RUNNERS or quota not in OF_RUNNERS)]
    assert counting, "the gate lets nobody run a job or upload who has no role for it"
    bounds = [_bound(quota, role, quotas) for role in counting]
    finite = [bound for bound in bounds if bound is not None]
    return max(finite, key=lambda bound: bound.most) if len(finite) == len(bounds) else None


def _bound(quota: Quota, role: Role, quotas: settings.Quotas) -> Bound | None:
    own: int | None = getattr(getattr(quotas.roles, role), quota)
    everybody: int | None = getattr(quotas, quota)
    if own is not None:
        return Bound(own, f"joblet.quotas.roles.{role}.{quota}")
    return Bound(everybody, f"joblet.quotas.{quota}") if everybody is not None else None


class Quotas:
    """The operator's quotas, asked on every call: answers are kept, at most one for each quota and set of roles."""

    def __init__(self, quotas: settings.Quotas) -> None:
        self._quotas = quotas
        self._known: dict[tuple[Quota, frozenset[Role]], Bound | None] = {}

    def of(self, quota: Quota, roles: frozenset[Role]) -> Bound | None:
        """As `bound_of`."""
        key = (quota, roles)
        if key not in self._known:
            self._known[key] = bound_of(quota, roles, self._quotas)
        return self._known[key]

    def most(self, quota: Quota, roles: frozenset[Role]) -> int | None:
        """The number alone, for those who tell of refusals in words of their own."""
        bound = self.of(quota, roles)
        return None if bound is None else bound.most
