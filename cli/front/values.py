"""Values of options that more than one program takes: sizes, durations, percentages, signals; text in, numbers out.

Here: parameter types for click around the parsers of `common`. Not here: which command takes them. A value that is
refused here is a usage error (exit code 2).
"""

import signal as signals
from collections.abc import Callable, Iterable
from typing import Any, Final

import click

from common.errors import JobletError, invalid
from common.quantities import parse_duration_ms, parse_size

MIB: Final = 2**20
COUNT_MAX: Final = 2**32 - 1
RATE_MAX: Final = 2**63 - 1


class Parsed(click.ParamType[Any]):
    """A type whose values `parse` reads; its JobletError becomes a usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value; a default that is no text passes."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except JobletError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How the value is called in the help."""
        del param, ctx
        return self.name


def _whole(text: str, most: int) -> int:
    number = int(text.lstrip("0")[:20] or "0") if text.isascii() and text.isdigit() else -1
    if not 0 <= number <= most:
        raise invalid(f"malformed number {text[:40]!r}: use a whole number from 0 to {most}")
    return number


def _percent(text: str) -> int:
    try:
        value = int(text.removesuffix("%"))
    except ValueError:
        value = 0
    if not 1 <= value <= COUNT_MAX:
        raise invalid(
            f"malformed percentage {text[:40]!r}: use a whole number from 1, such as 150 for one core and a half"
        )
    return value


def _signal(text: str) -> str:
    """`9`, `KILL` and `SIGKILL` are SIGKILL; of the real-time signals the first and the last have names."""
    word = text.strip().upper()
    try:
        if word.isascii() and word.isdigit():
            return signals.Signals(int(word)).name
        return signals.Signals[word if word.startswith("SIG") else f"SIG{word}"].name
    except (ValueError, KeyError):
        raise invalid(f"no such signal {text[:40]!r}: use a name or number, such as TERM, SIGINT or 9") from None


def check_utf8(words: Iterable[str], *, shown: str = "") -> None:
    """Raise INVALID for a word of the command line that is not: text travels as UTF-8, other bytes cannot.

    `shown`: what is told in place of the word, which may be secret.
    """
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError as cause:
            raise invalid(
                f"{shown or word!r} is not UTF-8", "pass such bytes in a file: rnx job run --upload PATH"
            ) from cause


COUNT: Final = Parsed("N", lambda text: _whole(text, COUNT_MAX))
RATE: Final = Parsed("N", lambda text: _whole(text, RATE_MAX))
SIZE: Final = Parsed("SIZE", parse_size)
MEMORY: Final = Parsed("SIZE", lambda text: parse_size(text, bare_unit_bytes=MIB))
DURATION: Final = Parsed("DUR", parse_duration_ms)
PERCENT: Final = Parsed("PERCENT", _percent)
SIGNAL: Final = Parsed("SIG", _signal)
