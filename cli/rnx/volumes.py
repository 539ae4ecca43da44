"""`rnx volume …`: named storage for jobs.

Here: the commands over VolumeService. Not here: what a volume is (the node).
"""

import click
import yaml

from cli.client.views import Object, volume_object
from cli.client.volumes import attach_volume, create_volume, detach_volume, get_volume, list_volumes, remove_volume
from cli.front.output import print_line
from cli.front.values import SIZE
from cli.rnx.commands import Verb
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.tables import print_fields, print_json, print_table
from cli.rnx.values import pairs
from common.errors import invalid
from common.quantities import format_size
from proto.joblet.v1 import volume_pb2

_name = click.argument("name")
_HEADINGS = ("NAME", "TYPE", "SIZE", "STATUS", "CREATED", "JOB")


@click.command("create", cls=Verb, example="rnx volume create data --size=1GB --type=filesystem --label=team=ml")
@_name
@click.option("--size", type=SIZE, required=True, help="How much it holds.")
@click.option(
    "--type", "kind", type=click.Choice(("filesystem", "memory")), default="filesystem", show_default=True,
    help="filesystem stays; memory is emptied when its last job ends.",
)  # fmt: skip
@click.option("--label", multiple=True, metavar="K=V", help="A label to find it by. Repeatable.")
@pass_invocation
def create_command(invocation: Invocation, *, name: str, size: int, kind: str, label: tuple[str, ...]) -> None:
    """Create a volume and print its id."""
    volume_type = volume_pb2.MEMORY if kind == "memory" else volume_pb2.FILESYSTEM
    with invocation.session() as session:
        volume = create_volume(session, name, size_bytes=size, kind=volume_type, labels=pairs(label, "--label"))
    if invocation.json:
        print_json(volume_object(volume))
    else:
        print_line(volume.id)


@click.command("list", cls=Verb, example="rnx volume list --filter=team=ml --format=json")
@click.option("--filter", "labels", multiple=True, metavar="K=V", help="With this label. Repeatable: with all.")
@click.option("--format", "form", type=click.Choice(("table", "json", "yaml")), help="[default: table]")
@pass_invocation
def list_command(invocation: Invocation, *, labels: tuple[str, ...], form: str | None) -> None:
    """Your volumes."""
    with invocation.session() as session:
        volumes = [*list_volumes(session, labels=pairs(labels, "--filter"))]
    objects = [volume_object(volume) for volume in volumes]
    match form or ("json" if invocation.json else "table"):
        case "json":
            print_json([*objects])
        case "yaml":
            click.echo(yaml.safe_dump(objects, sort_keys=False), nl=False)
        case _:
            print_table(_HEADINGS, (_row(volume, entry) for volume, entry in zip(volumes, objects, strict=True)))


@click.command("inspect", cls=Verb, example="rnx volume inspect data")
@_name
@pass_invocation
def inspect_command(invocation: Invocation, *, name: str) -> None:
    """Everything known about a volume."""
    with invocation.session() as session:
        volume = get_volume(session, name)
    _print(invocation, volume)


@click.command("remove", cls=Verb, example="rnx volume remove data --force")
@_name
@click.option("--force", is_flag=True, help="Even when a job uses it.")
@pass_invocation
def remove_command(invocation: Invocation, *, name: str, force: bool) -> None:
    """Remove a volume with all that is in it."""
    with invocation.session() as session:
        remove_volume(session, name, force=force)
    if invocation.json:
        print_json({"name": name})
    else:
        print_line(name)


@click.command("attach", cls=Verb, example="rnx volume attach data 6fa459ea:/data")
@_name
@click.argument("job", metavar="JOB[:/PATH]")
@pass_invocation
def attach_command(invocation: Invocation, *, name: str, job: str) -> None:
    """Give a volume to a running job, at /volumes/NAME or PATH."""
    reference, colon, path = job.partition(":")
    if colon and not path.startswith("/"):
        raise invalid(f"malformed path {path[:80]!r} in {job[:80]!r}", "write JOB:/PATH")
    with invocation.session() as session:
        volume = attach_volume(session, name, reference, path=path)
    _print(invocation, volume)


@click.command("detach", cls=Verb, example="rnx volume detach data 6fa459ea")
@_name
@click.argument("job", metavar="JOB")
@pass_invocation
def detach_command(invocation: Invocation, *, name: str, job: str) -> None:
    """Take a volume away from a job."""
    with invocation.session() as session:
        volume = detach_volume(session, name, job)
    _print(invocation, volume)


def _row(volume: volume_pb2.Volume, entry: Object) -> tuple[str, ...]:
    return (
        volume.name,
        str(entry["type"]),
        format_size(volume.size_bytes),
        volume.status,
        str(entry["created_at"] or ""),
        volume.current_job_id,
    )


def _print(invocation: Invocation, volume: volume_pb2.Volume) -> None:
    entry = volume_object(volume)
    if invocation.json:
        print_json(entry)
    else:
        print_fields((key.replace("_", " "), "" if value is None else str(value)) for key, value in entry.items())
