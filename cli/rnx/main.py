"""rnx: the user's program. The tree of commands.

Here: the top of the command line. Not here: what commands do (the other modules of this package), process entry and
errors (`cli/front/program.py`).
"""

from collections.abc import Sequence
from typing import Final, NoReturn

import click

from cli.front.program import Program, installed_version
from cli.rnx.commands import Room

_RUN: Final = "cli.rnx.run:run_command"

job = Room(
    name="job",
    help="Run jobs and look after them.",
    example="rnx job run -- make all",
    rooms={
        "run": _RUN,
        "start": "cli.rnx.run:start_command",
        "list": "cli.rnx.jobs:list_command",
        "status": "cli.rnx.jobs:status_command",
        "log": "cli.rnx.log:log_command",
        "metrics": "cli.rnx.metrics:metrics_command",
        "wait": "cli.rnx.jobs:wait_command",
        "stop": "cli.rnx.jobs:stop_command",
        "cancel": "cli.rnx.jobs:cancel_command",
        "delete": "cli.rnx.removal:delete_command",
        "delete-all": "cli.rnx.removal:delete_all_command",
    },
)
snapshot = Room(
    name="snapshot",
    help="A volume's content as it was.",
    example="rnx volume snapshot create data --as before",
    rooms={verb: f"cli.rnx.volume_snapshots:{verb}_command" for verb in ("create", "list", "remove", "restore")},
)
volume = Room(
    name="volume",
    help="Named storage for jobs.",
    example="rnx volume create data --size=1GB",
    rooms={
        "create": "cli.rnx.volumes:create_command",
        "list": "cli.rnx.volumes:list_command",
        "inspect": "cli.rnx.volumes:inspect_command",
        "remove": "cli.rnx.volumes:remove_command",
        "attach": "cli.rnx.volume_jobs:attach_command",
        "detach": "cli.rnx.volume_jobs:detach_command",
        "resize": "cli.rnx.volumes:resize_command",
        "snapshot": "cli.rnx.main:snapshot",
        "clone": "cli.rnx.volumes:clone_command",
        "export": "cli.rnx.volume_content:export_command",
        "import": "cli.rnx.volume_content:import_command",
    },
)
node = Room(
    name="node",
    help="The node itself.",
    example="rnx node info",
    rooms={"info": "cli.rnx.nodes:info_command", "audit": "cli.rnx.audit:audit_command"},
)
program = Room(
    name="rnx",
    help="Run Linux processes on joblet nodes, watch them live and read their output later.",
    example="rnx run -- sh -c 'echo hello; exit 7'",
    rooms={
        "job": "cli.rnx.main:job",
        "run": _RUN,
        "volume": "cli.rnx.main:volume",
        "node": "cli.rnx.main:node",
        "nodes": "cli.rnx.nodes:nodes_command",
        "monitor": "cli.rnx.monitor:monitor_command",
        "completion": "cli.rnx.completion:completion_command",
    },
)


click.version_option(installed_version(), prog_name="rnx", message="%(prog)s %(version)s")(program)
ENTRY: Final = Program("rnx", program)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run rnx with `arguments` (None: those of the process) and exit."""
    ENTRY.main(arguments)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run rnx and return its exit code."""
    return ENTRY.run(arguments)
