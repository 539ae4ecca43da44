"""Values of options: sizes, durations, times, names with values, signals; text in, numbers out.

Here: parameter types for click around the parsers of `common`. Not here: which command takes them. A value that is
refused here is a usage error (exit code 2).
"""

import os
import re
import signal as signals
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import click

from common.errors import JobletError, invalid
from common.quantities import parse_duration_ms, parse_size, parse_time_ns

MIB: Final = 2**20
COUNT_MAX: Final = 2**32 - 1
RATE_MAX: Final = 2**63 - 1
_VOLUME = re.compile(r"([^:]+)(?::(/[^:]*))?(?::(ro|rw))?")


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


class VolumeArgument(NamedTuple):
    """NAME[:/PATH][:ro]."""

    name: str
    path: str
    read_only: bool


def _past(text: str) -> int:
    return parse_time_ns(text, now_ns=time.time_ns())


def _future(text: str) -> int:
    """A duration counts from now on here: a schedule lies ahead."""
    try:
        return time.time_ns() + parse_duration_ms(text) * 1_000_000
    except JobletError:
        return parse_time_ns(text, now_ns=time.time_ns())


def _whole(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text[:20]) > most:
        raise invalid(f"malformed number {text[:40]!r}: use a whole number from 0 to {most}")
    return int(text)


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


def _cpus(text: str) -> int:
    try:
        percent = round(float(text) * 100)
    except (ValueError, OverflowError):
        percent = 0
    if not 1 <= percent <= COUNT_MAX:
        raise invalid(f"malformed number of cpus {text[:40]!r}: use such as 0.5 or 2")
    return percent


def _signal(text: str) -> str:
    """`9`, `KILL` and `SIGKILL` are SIGKILL; real-time signals are SIGRTMIN+n or their number."""
    word = text.strip().upper()
    try:
        if word.isascii() and word.isdigit():
            return signals.Signals(int(word)).name
        return signals.Signals[word if word.startswith("SIG") else f"SIG{word}"].name
    except (ValueError, KeyError):
        raise invalid(f"no such signal {text[:40]!r}: use a name or number, such as TERM, SIGINT or 9") from None


def _volume(text: str) -> VolumeArgument:
    match = _VOLUME.fullmatch(text)
    if match is None:
        raise invalid(f"malformed volume {text[:80]!r}: use NAME, NAME:/PATH or NAME:/PATH:ro")
    return VolumeArgument(match[1], match[2] or "", match[3] == "ro")


COUNT: Final = Parsed("N", lambda text: _whole(text, COUNT_MAX))
RATE: Final = Parsed("N", lambda text: _whole(text, RATE_MAX))
SIZE: Final = Parsed("SIZE", parse_size)
MEMORY: Final = Parsed("SIZE", lambda text: parse_size(text, bare_unit_bytes=MIB))
DURATION: Final = Parsed("DUR", parse_duration_ms)
TIME: Final = Parsed("T", _past)
SCHEDULE: Final = Parsed("TIME|DUR", _future)
PERCENT: Final = Parsed("PERCENT", _percent)
CPUS: Final = Parsed("N", _cpus)
SIGNAL: Final = Parsed("SIG", _signal)
VOLUME: Final = Parsed("NAME[:/PATH][:ro]", _volume)


def pairs(values: Iterable[str], option: str) -> dict[str, str]:
    """K=V options as a map; the last of the same key counts."""
    result = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE", param_hint=option)
        result[key] = text
    return result


def environment(values: Iterable[str], option: str) -> dict[str, str]:
    """K=V, or K alone for the value that it has here."""
    result = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not key:
            raise click.BadParameter(f"{value!r} has no name", param_hint=option)
        if not equals and key not in os.environ:
            raise click.BadParameter(f"{key} is not set here: write {key}=VALUE", param_hint=option)
        result[key] = text if equals else os.environ[key]
    return result
