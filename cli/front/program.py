"""From a tree of commands to a process: the one place where errors become a line on stderr and an exit code.

Here: process entry, the same for rnx, jobc and worker-service. Not here: commands (the packages of the programs), the
text of errors (`cli/client/errors.py`), exit codes (`cli/client/exits.py`).
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from cli.client.channel import prepare_environment
from cli.client.exits import EXIT_OF_REASON, Exit
from cli.front.completion import complete_variable
from cli.front.output import STDOUT, let_go, prepare_streams, tell, unwritable
from common.errors import JobletError


class Program:
    """A command line called `name`, whose commands are below `root`."""

    def __init__(self, name: str, root: click.Command) -> None:
        self.name = name
        self.root = root
        self.traceback_variable = f"{name.upper().replace('-', '_')}_TRACEBACK"

    def main(self, arguments: Sequence[str] | None = None) -> NoReturn:
        """Run with `arguments` (None: those of the process) and exit."""
        prepare_streams()
        prepare_environment()
        try:
            code = self.run(arguments)
        except KeyboardInterrupt:
            _leave_at_once()
        except Exception as error:  # process entry: a defect of ours is told in one line, too
            if os.environ.get(self.traceback_variable):
                raise
            advice = f"set {self.traceback_variable}=1 and report what it prints"
            self._tell(f"defect: {type(error).__name__}: {error}: {advice}")
            code = Exit.FAILURE
        sys.exit(code)

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """Run and return the exit code; errors are told on stderr, one line each. KeyboardInterrupt passes."""
        variable = complete_variable(self.name)
        instruction = os.environ.get(variable)
        if instruction:
            return shell_complete(self.root, {}, self.name, variable, instruction)
        try:
            return self._invoke(list(sys.argv[1:] if arguments is None else arguments))
        except click.ClickException as error:
            return self._tell_usage(error)
        except JobletError as error:
            self._tell(str(error))
            return EXIT_OF_REASON[error.reason]
        except click.Abort:
            return Exit.INTERRUPTED
        except OSError as error:
            return self._tell_unwritten(error)

    def _invoke(self, arguments: list[str]) -> int:
        # Not root.main(): it would exit with 1 for a broken pipe and print an empty line for an interrupt.
        try:
            with self.root.make_context(self.name, arguments) as context:
                outcome = self.root.invoke(context)
        except click.exceptions.Exit as end:
            outcome = end.exit_code
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else Exit.OK

    def _tell_usage(self, error: click.ClickException) -> int:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            click.echo(error.format_message(), err=True)
            return Exit.USAGE
        text = error.format_message().rstrip(".")
        if isinstance(error, click.UsageError):
            where = error.ctx.command_path if error.ctx is not None else self.name
            self._tell(f"{text}: see `{where} --help`")
            return Exit.USAGE
        self._tell(text)
        return Exit.FAILURE

    def _tell_unwritten(self, error: OSError) -> int:
        """The exit code when the output did not come to its end; raises `error` when it is about something else."""
        text = unwritable(error)
        if not text and not isinstance(error, BrokenPipeError):
            raise error
        let_go(STDOUT)
        if not text:
            return Exit.BROKEN_PIPE  # whoever left knows
        self._tell(text)
        return Exit.FAILURE

    def _tell(self, text: str) -> None:
        tell(f"{self.name}: {text}")


def installed_version() -> str:
    """The version of joblet, which is that of all its programs."""
    try:
        return version("joblet")
    except PackageNotFoundError:
        return "unknown (not installed)"


def _leave_at_once() -> NoReturn:
    """Exit without the destructors of gRPC objects, which may wait for ever after an interrupt (see session.py)."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(Exit.INTERRUPTED)
