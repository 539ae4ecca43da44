"""`rnx node audit`: who did what on the node, as lines or JSON.

Here: the command and how an entry looks. Not here: the query (`cli/client/audit.py`).
"""

from typing import Final

import click

from cli.client.audit import query_audit
from cli.client.escape import escape_line
from cli.client.views import audit_object
from cli.front.output import tell
from cli.front.values import COUNT
from cli.rnx.commands import Verb
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.tables import print_json
from cli.rnx.values import TIME
from common.errors import Reason, invalid
from common.quantities import format_time_ns
from proto.joblet.v1 import job_pb2, node_pb2, persist_pb2, volume_pb2, worker_pb2

OUTCOMES: Final = ("allowed", "ended", "unfinished", *(reason.value for reason in Reason), "torn", "missing")
METHODS: Final = tuple(
    method.name
    for module in (job_pb2, node_pb2, persist_pb2, volume_pb2, worker_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)
_LINE: Final = "{:<30} {:<12} {:<14} {:<36} {:<15} {:<22}"
_HEADING: Final = _LINE.format("TIME", "WHO", "METHOD", "OBJECT", "OUTCOME", "FROM") + " WHY"


class _Word(click.ParamType[str]):
    """A text for which there are proposals; others are taken as they are, because a newer node may know more."""

    def __init__(self, name: str, words: tuple[str, ...]) -> None:
        self.name = name
        self._words = words

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The words that begin so."""
        del ctx, param
        return [click.shell_completion.CompletionItem(word) for word in self._words if word.startswith(incomplete)]


@click.command(
    "audit",
    cls=Verb,
    example="rnx node audit --since=1h --outcome=denied\n"
    "rnx node audit --object=6fa459ea --json\n"
    "rnx node audit --tail=20 --follow",
)
@click.option("--since", type=TIME, help="From then on: RFC 3339, a duration back from now, or now.")
@click.option("--until", type=TIME, help="Before then.")
@click.option("--who", metavar="CN", default="", help="Of this user.")
@click.option("--method", type=_Word("NAME", METHODS), default="", help="Of this method, such as RunJob.")
@click.option("--object", "object_", metavar="ID", default="", help="On this job, by id or prefix, or volume.")
@click.option("--outcome", type=_Word("WORD", OUTCOMES), default="", help="With this outcome, such as denied.")
@click.option("--tail", type=COUNT, help="Only the last N of them, at most 10000.")
@click.option("--follow", is_flag=True, help="Go on with new ones until Ctrl-C.")
@click.option("--source", type=click.Choice(("api", "persist")), default="api", help="Whose log.  [default: api]")
@pass_invocation
def audit_command(
    invocation: Invocation,
    *,
    since: int | None,
    until: int | None,
    who: str,
    method: str,
    object_: str,
    outcome: str,
    tail: int | None,
    follow: bool,
    source: str,
) -> None:
    """Print the node's audit log, oldest first: who did what, on which job or volume, and what came of it.

    For admins. The log of persist has what retention removed. With --json one object a line.
    """
    if since is not None and until is not None and since >= until:
        raise invalid("--since is not before --until", "no time lies between them")
    if tail == 0:
        raise invalid("--tail=0 asks for nothing", "use 1 or more")
    request = node_pb2.QueryAuditRequest(
        start_time=since or 0,
        end_time=until or 0,
        who=who,
        method=method.rpartition("/")[2],
        object=object_,
        outcome=outcome,
        tail=tail or 0,
        follow=follow,
        source=source,
    )
    with invocation.session() as session:
        entries = query_audit(session, request, passed_over=_tell_unreadable)
        if not invocation.json:
            click.echo(_HEADING)
        for entry in entries:
            if invocation.json:
                print_json(audit_object(entry))
            else:
                click.echo(entry_text(entry))


def entry_text(entry: node_pb2.AuditEntry) -> str:
    """One line of the table, harmless for a terminal."""
    method = entry.method.rpartition("/")[2]
    cells = (format_time_ns(entry.timestamp), entry.who, method, entry.object, entry.outcome, entry.peer)
    return f"{_LINE.format(*(escape_line(cell) or '-' for cell in cells))} {escape_line(entry.why)}".rstrip()


def _tell_unreadable(count: int) -> None:
    tell(f"rnx: {count} lines of the audit log cannot be read: `joblet verify --audit` on the node tells which")
