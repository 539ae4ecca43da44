"""rnx: the user's program. The tree of commands, and the one place where errors become a line and an exit code.

Here: the top of the command line and process entry. Not here: what commands do (the other modules of this package).
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Final, NoReturn

import click
from click.shell_completion import shell_complete

from cli.client.channel import prepare_environment
from cli.client.exits import EXIT_OF_REASON, Exit
from cli.rnx.commands import Room
from cli.rnx.completion import COMPLETE_VARIABLE
from cli.rnx.invocation import tell
from common.errors import JobletError

TRACEBACK_VARIABLE: Final = "RNX_TRACEBACK"
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
volume = Room(
    name="volume",
    help="Named storage for jobs.",
    example="rnx volume create data --size=1GB",
    rooms={
        verb: f"cli.rnx.volumes:{verb}_command" for verb in ("create", "list", "inspect", "remove", "attach", "detach")
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


def _version() -> str:
    try:
        return version("joblet")
    except PackageNotFoundError:
        return "unknown (not installed)"


click.version_option(_version(), prog_name="rnx", message="%(prog)s %(version)s")(program)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run rnx with `arguments` (None: those of the process) and exit."""
    prepare_environment()
    try:
        code = run(arguments)
    except KeyboardInterrupt:
        _leave_at_once()
    except Exception as error:  # process entry: a defect of ours is told in one line, too
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        tell(f"rnx: defect: {type(error).__name__}: {error}: set {TRACEBACK_VARIABLE}=1 and report what it prints")
        code = Exit.FAILURE
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run rnx and return its exit code; errors are told on stderr, one line each. KeyboardInterrupt passes."""
    instruction = os.environ.get(COMPLETE_VARIABLE)
    if instruction:
        return shell_complete(program, {}, "rnx", COMPLETE_VARIABLE, instruction)
    try:
        return _invoke(list(sys.argv[1:] if arguments is None else arguments))
    except click.ClickException as error:
        return _tell_usage(error)
    except JobletError as error:
        tell(f"rnx: {error}")
        return EXIT_OF_REASON[error.reason]
    except click.Abort:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        _let_go_of_stdout()
        return Exit.BROKEN_PIPE


def _invoke(arguments: list[str]) -> int:
    # Not program.main(): it would exit with 1 for a broken pipe and print an empty line for an interrupt.
    try:
        with program.make_context("rnx", arguments) as context:
            outcome = program.invoke(context)
    except click.exceptions.Exit as end:
        outcome = end.exit_code
    sys.stdout.flush()
    return outcome if isinstance(outcome, int) else Exit.OK


def _tell_usage(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return Exit.USAGE
    text = error.format_message().rstrip(".")
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx is not None else "rnx"
        tell(f"rnx: {text}: see `{where} --help`")
        return Exit.USAGE
    tell(f"rnx: {text}")
    return Exit.FAILURE


def _leave_at_once() -> NoReturn:
    """Exit without the destructors of gRPC objects, which may wait for ever after an interrupt (see session.py)."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(Exit.INTERRUPTED)


def _let_go_of_stdout() -> None:
    """Nobody reads any more: what is still buffered goes nowhere, instead of failing again at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
