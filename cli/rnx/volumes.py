"""`rnx volume create|list|inspect|remove|resize|clone`: volumes themselves.

Here: the commands and their options. Not here: jobs that use volumes (`volume_jobs.py`), snapshots
(`volume_snapshots.py`), content (`volume_content.py`), how it all looks (`volume_show.py`).
"""

import click
import yaml

from cli.client.exits import EXIT_OF_REASON, Exit
from cli.client.session import Session
from cli.client.views import volume_object
from cli.client.volume_copies import clone_volume
from cli.client.volumes import create_volume, get_volume, list_volumes, remove_volume, resize_volume
from cli.front.output import print_line, tell
from cli.front.values import SIZE
from cli.rnx.commands import Verb
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.names import volume_names
from cli.rnx.tables import print_fields, print_json, print_table, used_columns
from cli.rnx.values import CONTENT, ContentArgument, pairs
from cli.rnx.volume_show import OWNER, VOLUME_HEADINGS, volume_fields, volume_row
from common.errors import JobletError, Reason
from common.quantities import format_size
from proto.joblet.v1 import volume_pb2

_TYPES = {"filesystem": volume_pb2.FILESYSTEM, "memory": volume_pb2.MEMORY}

name_argument = click.argument("name", shell_complete=volume_names)
_label = click.option("--label", multiple=True, metavar="K=V", help="A label to find it by. Repeatable.")


@click.command(
    "create",
    cls=Verb,
    example="rnx volume create data --size=1GB --type=filesystem --label=team=ml\n"
    "rnx volume create scratch --size=100Mi --type=memory --shared",
)
@click.argument("name")
@click.option("--size", type=SIZE, required=True, help="How much it holds.")
@click.option(
    "--type", "kind", type=click.Choice((*_TYPES,)), default="filesystem", show_default=True,
    help="filesystem stays; memory is emptied when its last job ends.",
)  # fmt: skip
@_label
@click.option("--shared", is_flag=True, help="Several of your jobs may use it at once, and write.")
@click.option("--advisory", is_flag=True, help="Also where the node cannot enforce the size.")
@click.option("--encrypt", is_flag=True, help="Encrypted on the disk.")
@pass_invocation
def create_command(
    invocation: Invocation,
    *,
    name: str,
    size: int,
    kind: str,
    label: tuple[str, ...],
    shared: bool,
    advisory: bool,
    encrypt: bool,
) -> None:
    """Create a volume and print its id."""
    request = volume_pb2.CreateVolumeRequest(
        name=name,
        type=_TYPES[kind],
        size_bytes=size,
        labels=pairs(label, "--label"),
        shared=shared,
        advisory=advisory,
        encrypted=encrypt,
    )
    with invocation.session() as session:
        _print_made(invocation, create_volume(session, request))


@click.command(
    "clone", cls=Verb, example="rnx volume clone data copy\nrnx volume clone data@before copy --label=of=data"
)
@click.argument("source", type=CONTENT, shell_complete=volume_names)
@click.argument("new", metavar="NEW")
@_label
@pass_invocation
def clone_command(invocation: Invocation, *, source: ContentArgument, new: str, label: tuple[str, ...]) -> None:
    """Make a volume with the content of another one, or of its snapshot, and print its id."""
    labels = pairs(label, "--label")
    with invocation.session() as session:
        _print_made(invocation, clone_volume(session, source.volume, new, snapshot=source.snapshot, labels=labels))


@click.command(
    "list", cls=Verb, example="rnx volume list --filter=team=ml --format=json\nrnx volume list --all --owner=ann"
)
@click.option("--filter", "labels", multiple=True, metavar="K=V", help="With this label. Repeatable: with all.")
@click.option("--format", "form", type=click.Choice(("table", "json", "yaml")), help="[default: table]")
@click.option("--owner", default="", metavar="CN", help="Of this owner.")
@click.option("--all", "everybody", is_flag=True, help="Of all owners whose volumes you may see.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@pass_invocation
def list_command(
    invocation: Invocation, *, labels: tuple[str, ...], form: str | None, owner: str, everybody: bool, limit: int | None
) -> None:
    """Your volumes, by name."""
    wanted = pairs(labels, "--filter")
    with invocation.session() as session:
        volumes = [*list_volumes(session, labels=wanted, owner=owner, everybody=everybody, limit=limit)]
    objects = [volume_object(volume) for volume in volumes]
    match form or ("json" if invocation.json else "table"):
        case "json":
            print_json([*objects])
        case "yaml":
            click.echo(yaml.safe_dump(objects, sort_keys=False), nl=False)
        case _:
            rows = [volume_row(volume, with_owner=everybody or bool(owner)) for volume in volumes]
            print_table(*used_columns(VOLUME_HEADINGS, rows, sometimes={OWNER}))


@click.command("inspect", cls=Verb, example="rnx volume inspect data\nrnx volume inspect data --json | jq .used_bytes")
@name_argument
@pass_invocation
def inspect_command(invocation: Invocation, *, name: str) -> None:
    """Everything known about a volume."""
    with invocation.session() as session:
        volume = get_volume(session, name)
    if invocation.json:
        print_json(volume_object(volume))
    else:
        print_fields(volume_fields(volume))


@click.command("remove", cls=Verb, example="rnx volume remove data\nrnx volume remove data cache --force")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=volume_names)
@click.option("--force", is_flag=True, help="Even when jobs use it: they lose it.")
@pass_invocation
def remove_command(invocation: Invocation, *, names: tuple[str, ...], force: bool) -> int:
    """Remove volumes with all that is in them, their snapshots too.

    Goes on with the others when one cannot be removed.
    """
    with invocation.session() as session:
        removed, worst = _remove(session, names, force=force)
    if invocation.json:
        print_json([{"name": name} for name in removed])
    else:
        for name in removed:
            print_line(name)
    return worst


@click.command("resize", cls=Verb, example="rnx volume resize data --size=2GB")
@name_argument
@click.option("--size", type=SIZE, required=True, help="How much it is to hold: more than now.")
@pass_invocation
def resize_command(invocation: Invocation, *, name: str, size: int) -> None:
    """Make a volume larger, also while jobs use it."""
    with invocation.session() as session:
        volume = resize_volume(session, name, size_bytes=size)
    if invocation.json:
        print_json(volume_object(volume))
    else:
        print_line(f"{volume.name} {format_size(volume.size_bytes)}")


def _remove(session: Session, names: tuple[str, ...], *, force: bool) -> tuple[list[str], int]:
    """Which were removed, and the exit code: of the last refusal, if any."""
    removed, worst = [], int(Exit.OK)
    for name in names:
        try:
            remove_volume(session, name, force=force)
            removed.append(name)
        except JobletError as error:
            if len(names) == 1 or error.reason in (Reason.UNAVAILABLE, Reason.DEADLINE):
                raise
            tell(f"rnx: {name}: {error}")
            worst = EXIT_OF_REASON[error.reason]
    return removed, worst


def _print_made(invocation: Invocation, volume: volume_pb2.Volume) -> None:
    if invocation.json:
        print_json(volume_object(volume))
    else:
        print_line(volume.id)
