"""How commands of rnx are made: groups that load their commands late, and verbs that take the global options anywhere.

Here: the click classes. Not here: any command.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from cli.front.connection import DEFAULT_NODE
from cli.front.values import DURATION
from cli.rnx.invocation import Invocation


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(context.ensure_object(Invocation), name, value)

    return callback


def global_options() -> tuple[click.Option, ...]:
    """Fresh options that write into the invocation instead of reaching the command."""

    def option(names: tuple[str, ...], field: str, **attributes: Any) -> click.Option:
        return click.Option([*names, f"global_{field}"], callback=_keep(field), expose_value=False, **attributes)

    return (
        option(
            ("--config",),
            "config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Client configuration. Else ./rnx-config.yml, ~/.rnx/, /etc/joblet/ and /opt/joblet/rnx-config.yml.",
        ),
        option(
            ("--node",), "node", metavar="CONTEXT", help=f"Context of the configuration.  [default: {DEFAULT_NODE}]"
        ),
        option(("--json",), "json", is_flag=True, default=None, help="Machine output with stable keys."),
        option(("--timeout",), "timeout_ms", type=DURATION, help="Give up after this time."),
    )


def _with_globals(params: list[click.Parameter]) -> list[click.Parameter]:
    own = {name for param in params for name in param.opts}
    return params + [option for option in global_options() if not own.intersection(option.opts)]


class Verb(click.Command):
    """A command with an example in its help and the global options among its own."""

    def __init__(self, *args: Any, example: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.example = example
        self.params = _with_globals(self.params)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The example stands below the options."""
        super().format_epilog(ctx, formatter)
        _write_example(formatter, self.example)


class Room(click.Group):
    """A group of commands, each named by `module:attribute` and imported when it is used."""

    def __init__(self, *args: Any, example: str, rooms: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.example = example
        self._rooms = dict(rooms)
        self.params = _with_globals(self.params)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        del ctx
        return list(self._rooms)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None when there is none of that name."""
        del ctx
        place = self._rooms.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The example stands below the commands."""
        super().format_epilog(ctx, formatter)
        _write_example(formatter, self.example)


def _write_example(formatter: click.HelpFormatter, example: str) -> None:
    with formatter.section("Example"):
        for line in example.splitlines():
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
