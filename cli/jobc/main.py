"""jobc: the short client of S3. The tree of commands.

Here: the top of the command line. Not here: what commands do (`verbs.py`), process entry and errors
(`cli/front/program.py`).
"""

from collections.abc import Sequence
from typing import Final, NoReturn

import click

from cli.front.program import Program, installed_version
from cli.jobc.commands import PROGRAM, Room

VERBS: Final = ("start", "stop", "status", "logs")
program = Room(
    name=PROGRAM,
    help="Run Linux processes on a joblet node. The same jobs as those of rnx, in four commands.",
    example="id=$(jobc start sleep 60)\njobc status $id\njobc stop $id\njobc logs $id",
    rooms={
        **{verb: f"cli.jobc.verbs:{verb}_command" for verb in VERBS},
        "completion": "cli.jobc.completion:completion_command",
    },
)
click.version_option(installed_version(), prog_name=PROGRAM, message="%(prog)s %(version)s")(program)
ENTRY: Final = Program(PROGRAM, program)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run jobc with `arguments` (None: those of the process) and exit."""
    ENTRY.main(arguments)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run jobc and return its exit code."""
    return ENTRY.run(arguments)
