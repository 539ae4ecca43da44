"""One call in progress: who makes it, what it needs, and its lines in the audit log.

Belongs here: the value that the gate hands to the servicers. It travels in a context variable, because gRPC's own
context takes no attributes and the generated servicer signatures have no room for more.
"""

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from common.errors import JobletError
from common.identifiers import parse_name
from services.api import audit
from services.api.identity import Principal
from services.api.permissions import Permission, Rule, Scope, scope_of

if TYPE_CHECKING:
    from grpc import aio

Context: TypeAlias = "aio.ServicerContext[Any, Any]"


VOLUMES: Final = "/joblet.v1.VolumeService/"


class Call:
    """An authenticated caller using one method, and its lines in the audit log.

    A unary call has one line, when it has ended, with what became of it. A stream has one when it is allowed, because
    it may last for days, and one when it has ended; a stream that was not allowed has one. Each is written once.
    """

    def __init__(self, *, principal: Principal, method: str, rule: Rule, peer: str, audit_log: audit.Audit) -> None:
        self.principal = principal
        self.method = method
        self.rule = rule
        self.peer = peer
        self.object = ""
        """The job or volume in question: as asked for, until it is known by its full name."""
        self.note = ""
        """What the log is to tell beside it, also of a call that did what it should; complete when the call ends."""
        self._audit = audit_log
        self._begun = False
        self._ended = False

    @property
    def visible_owner(self) -> str | None:
        """Whose jobs the caller sees: None means everybody's."""
        return None if self.scope(Permission.READ) is Scope.ANY else self.principal.name

    def scope(self, permission: Permission) -> Scope:
        """How far the caller reaches with `permission`."""
        return scope_of(self.principal.roles, permission)

    def asks(self, request: object) -> None:
        """What is asked for, as far as the log is to name it. Jobs are named by `access.py`, which checks the id."""
        if self.method.startswith(VOLUMES):
            # In requests about a volume's content `name` is another one's: the snapshot's, or the new volume's.
            name = "volume" if hasattr(request, "volume") else "name"
            self.object = _volume_name(getattr(request, name, ""))

    def allowed(self) -> None:
        """The caller may do what he asks for. A stream begins in the log; of a unary call the end will tell."""
        if self.rule.streams and not self._begun and not self._ended:
            self._begun = True
            self._record(audit.ALLOWED)

    def ended(self, outcome: str = audit.ALLOWED, why: str = "") -> None:
        """The call is over. What comes after the first time tells nothing new."""
        if self._ended:
            return
        if outcome == audit.ALLOWED:
            self.allowed()
        self._ended = True
        if self._begun and outcome in {audit.ALLOWED, audit.UNFINISHED}:
            outcome = audit.ENDED
        self._record(outcome, "; ".join(filter(None, (why, self.note))))

    def _record(self, outcome: str, why: str = "") -> None:
        self._audit.record(
            audit.Decision(
                time=audit.now(),
                who=self.principal.name,
                serial=self.principal.serial,
                roles=tuple(sorted(self.principal.roles)),
                scheme=self.principal.scheme,
                method=self.method,
                object=self.object,
                peer=self.peer,
                outcome=outcome,
                why=why[: audit.WHY_CHARACTERS_MAX],
            )
        )


def _volume_name(text: str) -> str:
    """A name that could be one; anything else is not worth a line's place, and is refused anyway."""
    try:
        return parse_name(text, "volume")
    except JobletError:
        return ""


_current: ContextVar[Call] = ContextVar("call")


def enter(call: Call) -> None:
    """Make `call` the current one of this task. A gRPC handler has a task of its own, so nothing is to be undone."""
    _current.set(call)


def current() -> Call:
    """The call that this task serves."""
    return _current.get()
