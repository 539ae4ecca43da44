"""One call in progress: who makes it, what it needs, and its line in the audit log.

Belongs here: the value that the gate hands to the servicers. It travels in a context variable, because gRPC's own
context takes no attributes and the generated servicer signatures have no room for more.
"""

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias

from services.api import audit
from services.api.identity import Principal
from services.api.permissions import Permission, Rule, Scope, scope_of

if TYPE_CHECKING:
    from grpc import aio

Context: TypeAlias = "aio.ServicerContext[Any, Any]"


class Call:
    """An authenticated caller using one method. Its decision is recorded once, by whoever knows it first."""

    def __init__(self, *, principal: Principal, method: str, rule: Rule, peer: str, audit_log: audit.Audit) -> None:
        self.principal = principal
        self.method = method
        self.rule = rule
        self.peer = peer
        self.job = ""
        self._audit = audit_log
        self._decided = False

    @property
    def visible_owner(self) -> str | None:
        """Whose jobs the caller sees: None means everybody's."""
        return None if self.scope(Permission.READ) is Scope.ANY else self.principal.name

    def scope(self, permission: Permission) -> Scope:
        """How far the caller reaches with `permission`."""
        return scope_of(self.principal.roles, permission)

    def decided(self, outcome: str, why: str = "") -> None:
        """Record the decision; what comes after the first is no decision any more."""
        if self._decided:
            return
        self._decided = True
        self._audit.record(
            audit.Decision(
                time=audit.now(),
                who=self.principal.name,
                serial=self.principal.serial,
                roles=tuple(sorted(self.principal.roles)),
                scheme=self.principal.scheme,
                method=self.method,
                job=self.job,
                peer=self.peer,
                outcome=outcome,
                why=why,
            )
        )


_current: ContextVar[Call] = ContextVar("call")


def enter(call: Call) -> None:
    """Make `call` the current one of this task. A gRPC handler has a task of its own, so nothing is to be undone."""
    _current.set(call)


def current() -> Call:
    """The call that this task serves."""
    return _current.get()
