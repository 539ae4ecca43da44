"""How commands of every program are made: with an example in their help, and imported when they are used.

Here: the click classes, and the options about the connection, which stand anywhere on the line. Not here: any command.
A program derives its own two classes and says which options all of its commands have.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import click

from cli.front.connection import DEFAULT_NODE, Connection
from cli.front.values import DURATION
from common.errors import invalid


def kept_option(names: Sequence[str], field: str, connection: type[Connection], **attributes: Any) -> click.Option:
    """A fresh option that writes into the context's `connection` instead of reaching the command: the last one wins."""

    def keep(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(context.ensure_object(connection), field, value)

    return click.Option([*names, f"global_{field}"], callback=keep, expose_value=False, **attributes)


def connection_options(connection: type[Connection], prefixes: Sequence[str] = ("--",)) -> tuple[click.Option, ...]:
    """Fresh options for what a Connection has; each name is written with each of the `prefixes`."""

    def option(name: str, field: str, **attributes: Any) -> click.Option:
        return kept_option([prefix + name for prefix in prefixes], field, connection, **attributes)

    return (
        option(
            "config",
            "config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Client configuration. Else ./rnx-config.yml, ~/.rnx/, /etc/joblet/ and /opt/joblet/rnx-config.yml.",
        ),
        option("node", "node", metavar="CONTEXT", help=f"Context of the configuration.  [default: {DEFAULT_NODE}]"),
        option("timeout", "timeout_ms", type=DURATION, help="Give up after this time."),
    )


def _no_options() -> tuple[click.Option, ...]:
    return ()


def _with_common(params: list[click.Parameter], common: Sequence[click.Option]) -> list[click.Parameter]:
    own = {name for param in params for name in param.opts}
    return params + [option for option in common if not own.intersection(option.opts)]


class Verb(click.Command):
    """A command with an example in its help, and the program's common options among its own."""

    common_options: ClassVar[Callable[[], tuple[click.Option, ...]]] = staticmethod(_no_options)

    def __init__(self, *args: Any, example: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.example = example
        self.params = _with_common(self.params, type(self).common_options())

    def invoke(self, ctx: click.Context) -> Any:
        """As click does; bytes of the command line that are no text are the user's mistake, and named."""
        try:
            return super().invoke(ctx)
        except UnicodeEncodeError as cause:  # protobuf's, whose strings are UTF-8
            for param in self.params:
                if not _is_text(ctx.params.get(param.name or "")):
                    raise invalid(f"{param.get_error_hint(ctx)} is not UTF-8", "nothing else can be sent") from cause
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The example stands below the options."""
        super().format_epilog(ctx, formatter)
        _write_example(formatter, self.example)


class Room(click.Group):
    """A group of commands, each named by `module:attribute` and imported when it is used."""

    common_options: ClassVar[Callable[[], tuple[click.Option, ...]]] = staticmethod(_no_options)

    def __init__(self, *args: Any, example: str, rooms: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.example = example
        self._rooms = dict(rooms)
        self.params = _with_common(self.params, type(self).common_options())

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


def _is_text(value: object) -> bool:
    """Whether all words in the value of a parameter are UTF-8: os.fsdecode leaves other bytes as lone surrogates."""
    if isinstance(value, tuple):
        return all(_is_text(each) for each in value)
    return not isinstance(value, str) or value == value.encode("utf-8", "replace").decode("utf-8")


def _write_example(formatter: click.HelpFormatter, example: str) -> None:
    with formatter.section("Example"):
        for line in example.splitlines():
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
