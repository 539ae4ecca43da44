"""Values of options that only rnx takes: times, cpus, volumes, names with values; text in, numbers out.

Here: parameter types for click around the parsers of `common`. Not here: those that every program takes
(`cli/front/values.py`), and which command takes them. A value that is refused here is a usage error (exit code 2).
"""

import os
import re
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

import click

from cli.front.values import COUNT_MAX, Parsed
from common.errors import JobletError, invalid
from common.quantities import SECONDS_BELOW, parse_duration_ms, parse_time_ns

_TIME_NS_MAX: Final = 2**63 - 1
_VOLUME = re.compile(r"([^:]+)(?::(/[^:]*))?(?::(ro|rw))?")


class VolumeArgument(NamedTuple):
    """NAME[:/PATH][:ro]."""

    name: str
    path: str
    read_only: bool


class ContentArgument(NamedTuple):
    """NAME[@SNAPSHOT]; the empty snapshot is the volume as it is now."""

    volume: str
    snapshot: str


def _past(text: str) -> int:
    """Where a request has no room for a time, the nearest that it has: nothing was written before or behind those."""
    return min(max(parse_time_ns(text, now_ns=time.time_ns()), SECONDS_BELOW), _TIME_NS_MAX)


def _future(text: str) -> int:
    """A duration counts from now on here: a schedule lies ahead."""
    try:
        return time.time_ns() + parse_duration_ms(text) * 1_000_000
    except JobletError:
        return parse_time_ns(text, now_ns=time.time_ns())


def _cpus(text: str) -> int:
    try:
        percent = round(float(text) * 100)
    except (ValueError, OverflowError):
        percent = 0
    if not 1 <= percent <= COUNT_MAX:
        raise invalid(f"malformed number of cpus {text[:40]!r}: use such as 0.5 or 2")
    return percent


def _volume(text: str) -> VolumeArgument:
    match = _VOLUME.fullmatch(text)
    if match is None:
        raise invalid(f"malformed volume {text[:80]!r}: use NAME, NAME:/PATH or NAME:/PATH:ro")
    return VolumeArgument(match[1], match[2] or "", match[3] == "ro")


def _job_place(text: str) -> VolumeArgument:
    """As for a volume: the name is the job's."""
    match = _VOLUME.fullmatch(text)
    if match is None:
        raise invalid(f"malformed place {text[:80]!r}: use JOB, JOB:/PATH or JOB:/PATH:ro")
    return VolumeArgument(match[1], match[2] or "", match[3] == "ro")


def _content(text: str) -> ContentArgument:
    name, at, snapshot = text.partition("@")
    if not name or (at and not snapshot):
        raise invalid(f"malformed name {text[:80]!r}: use NAME or NAME@SNAPSHOT")
    return ContentArgument(name, snapshot)


TIME: Final = Parsed("T", _past)
SCHEDULE: Final = Parsed("TIME|DUR", _future)
CPUS: Final = Parsed("N", _cpus)
VOLUME: Final = Parsed("NAME[:/PATH][:ro]", _volume)
JOB_PLACE: Final = Parsed("JOB[:/PATH][:ro]", _job_place)
CONTENT: Final = Parsed("NAME[@SNAPSHOT]", _content)


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
            raise click.BadParameter(
                f"a value without a name: write NAME={'…' if text else 'VALUE'}", param_hint=option
            )
        if not equals and key not in os.environ:
            raise click.BadParameter(f"{key} is not set here: write {key}=VALUE", param_hint=option)
        result[key] = text if equals else os.environ[key]
    return result
