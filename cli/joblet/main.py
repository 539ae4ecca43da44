"""`joblet`, the operator's program: commands put together, errors as one line, exit codes.

Here: nothing but that; each command stands in its own module and is loaded when it is used.
"""

import importlib
import sys
from typing import Final

import click

from cli.client.exits import EXIT_OF_REASON, Exit
from cli.front.output import STDOUT, let_go, prepare_streams, tell, unwritable
from common.errors import JobletError

COMMANDS: Final = {
    "up": ("cli.joblet.up", "up", "Start the four services and keep them running."),
    "down": ("cli.joblet.up", "down", "Stop the joblet up of a base directory."),
    "certs": ("cli.joblet.certs", "certs", "Make, renew, revoke and show certificates."),
    "config": ("cli.joblet.configuration", "config", "Check and show the configuration."),
    "doctor": ("cli.joblet.doctor", "doctor", "Tell what this host can enforce."),
    "tap": ("cli.joblet.tap", "tap", "Print what passes over the event topics."),
    "verify": ("cli.joblet.verify", "verify", "Check the stored log files, or the audit log."),
    "retention": ("cli.joblet.retention", "retention", "Remove old logs and metrics as the configuration says."),
    "completion": ("cli.joblet.completion", "completion", "Print the shell's completion script."),
}
"""Name → module, object, what `joblet --help` says. gRPC and cryptography load only for those who need them."""


class _Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None when there is none."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without importing anything."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.command(
    cls=_Commands,
    epilog="Example: joblet up --base-dir /tmp/node --port 0",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="joblet", prog_name="joblet")
def joblet() -> None:
    """Operate a joblet node."""


def main() -> None:
    """Run the command line; leaves by SystemExit. Errors are one line on stderr: what, then what to do."""
    prepare_streams()
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of one command line."""
    try:
        code = joblet.main(arguments, prog_name="joblet", standalone_mode=False)
    except click.exceptions.Exit as end:
        code = end.exit_code
    except click.ClickException as error:
        code = _fail(f"{error.format_message()} Try: joblet --help", Exit.USAGE)
    except JobletError as error:
        code = _fail(str(error), EXIT_OF_REASON[error.reason])
    except (click.Abort, KeyboardInterrupt):
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        let_go(STDOUT)
        code = Exit.BROKEN_PIPE
    except OSError as error:
        text = unwritable(error)
        if not text:
            raise
        let_go(STDOUT)
        code = _fail(text, Exit.FAILURE)
    return int(code) if isinstance(code, int) else int(Exit.OK)


def _fail(text: str, code: Exit) -> int:
    tell(f"joblet: {text}")
    return int(code)


if __name__ == "__main__":
    main()
