"""`rnx volume snapshot create|list|remove|restore`: a volume's content as it was.

Here: the commands. Not here: clones of snapshots (`volumes.py`), their export (`volume_content.py`).
"""

import click

from cli.client.views import snapshot_object, volume_object
from cli.client.volume_copies import create_snapshot, list_snapshots, remove_snapshot, restore_snapshot
from cli.front.output import print_line
from cli.rnx.commands import Verb
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.tables import print_json, print_table
from cli.rnx.volume_show import SNAPSHOT_HEADINGS, snapshot_row
from cli.rnx.volumes import name_argument

_snapshot = click.argument("snapshot", metavar="SNAPSHOT")


@click.command(
    "create", cls=Verb, example="rnx volume snapshot create data\nrnx volume snapshot create data --as before"
)
@name_argument
@click.option("--as", "snapshot", default="", metavar="SNAPSHOT", help="Its name.  [default: the time]")
@pass_invocation
def create_command(invocation: Invocation, *, name: str, snapshot: str) -> None:
    """Keep a volume's content as it is now, also while jobs use it, and print the snapshot's name."""
    with invocation.session() as session:
        made = create_snapshot(session, name, snapshot)
    if invocation.json:
        print_json(snapshot_object(made))
    else:
        print_line(made.name)


@click.command("list", cls=Verb, example="rnx volume snapshot list data --json")
@name_argument
@pass_invocation
def list_command(invocation: Invocation, *, name: str) -> None:
    """The snapshots of a volume, the oldest first."""
    with invocation.session() as session:
        snapshots = list_snapshots(session, name)
    if invocation.json:
        print_json([snapshot_object(snapshot) for snapshot in snapshots])
    else:
        print_table(SNAPSHOT_HEADINGS, [snapshot_row(snapshot) for snapshot in snapshots])


@click.command("remove", cls=Verb, example="rnx volume snapshot remove data before")
@name_argument
@_snapshot
@pass_invocation
def remove_command(invocation: Invocation, *, name: str, snapshot: str) -> None:
    """Remove a snapshot; the volume stays as it is."""
    with invocation.session() as session:
        remove_snapshot(session, name, snapshot)
    if invocation.json:
        print_json({"volume": name, "name": snapshot})
    else:
        print_line(snapshot)


@click.command("restore", cls=Verb, example="rnx volume snapshot restore data before")
@name_argument
@_snapshot
@pass_invocation
def restore_command(invocation: Invocation, *, name: str, snapshot: str) -> None:
    """Make a volume's content the snapshot's again; what is in it now is lost. No job may use it."""
    with invocation.session() as session:
        volume = restore_snapshot(session, name, snapshot)
    if invocation.json:
        print_json(volume_object(volume))
    else:
        print_line(f"{volume.name} is as {snapshot} was")
