"""worker-service: the short client of S2. The tree of commands.

Here: the top of the command line. Not here: what commands do (`verbs.py`), process entry and errors
(`cli/front/program.py`).
"""

from collections.abc import Sequence
from typing import Final, NoReturn

import click

from cli.front.program import Program, installed_version
from cli.worker_service.commands import PROGRAM, Room, flags

VERBS: Final = ("start", "stop", "query", "stream")
program = Room(
    name=PROGRAM,
    help="Run Linux processes on a joblet node. The same jobs as those of rnx, in four commands.",
    example='worker-service start -command "sort" "largefile.txt -o sortedfile.txt"\nworker-service query 6fa459ea',
    rooms={
        **{verb: f"cli.worker_service.verbs:{verb}_command" for verb in VERBS},
        "completion": "cli.worker_service.completion:completion_command",
    },
)
click.version_option(installed_version(), *flags("version"), prog_name=PROGRAM, message="%(prog)s %(version)s")(program)
ENTRY: Final = Program(PROGRAM, program)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run worker-service with `arguments` (None: those of the process) and exit."""
    ENTRY.main(arguments)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run worker-service and return its exit code."""
    return ENTRY.run(arguments)
