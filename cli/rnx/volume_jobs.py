"""`rnx volume attach|detach`: volumes of running jobs.

Here: the two commands. Not here: volumes of jobs that are started (`spec.py`).
"""

import click

from cli.client.views import volume_object
from cli.client.volumes import attach_volume, detach_volume
from cli.front.output import print_line
from cli.rnx.commands import Verb
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.tables import print_json
from cli.rnx.values import JOB_PLACE, VolumeArgument
from cli.rnx.volumes import name_argument
from proto.joblet.v1 import volume_pb2


@click.command(
    "attach",
    cls=Verb,
    example="rnx volume attach data 6fa459ea\nrnx volume attach data 6fa459ea:/data\n"
    "rnx volume attach data 6fa459ea:/data:ro",
)
@name_argument
@click.argument("place", metavar="JOB[:/PATH][:ro]", type=JOB_PLACE)
@click.option("--read-only", is_flag=True, help="The job may not write to it; the same as :ro.")
@pass_invocation
def attach_command(invocation: Invocation, *, name: str, place: VolumeArgument, read_only: bool) -> None:
    """Let a volume appear in a running job, at /volumes/NAME or PATH."""
    with invocation.session() as session:
        volume = attach_volume(session, name, place.name, path=place.path, read_only=read_only or place.read_only)
    if invocation.json:
        print_json(volume_object(volume))
        return
    for use in volume.uses:
        if use.job_id.startswith(place.name.lower()):
            print_line(f"{volume.name} is at {use.path} in job {use.job_id}{', read-only' if use.read_only else ''}")


@click.command("detach", cls=Verb, example="rnx volume detach data 6fa459ea")
@name_argument
@click.argument("job", metavar="JOB")
@click.option("--force", is_flag=True, help="Also while the job uses it; what it has open stays open to it.")
@pass_invocation
def detach_command(invocation: Invocation, *, name: str, job: str, force: bool) -> None:
    """Take a volume away from a running job."""
    with invocation.session() as session:
        volume = detach_volume(session, name, job, force=force)
    if invocation.json:
        print_json(volume_object(volume))
    else:
        print_line(f"{volume.name} {_left(volume)}")


def _left(volume: volume_pb2.Volume) -> str:
    count = len(volume.uses)
    return f"is used by {count} other {'job' if count == 1 else 'jobs'}" if count else "is used by no job"
