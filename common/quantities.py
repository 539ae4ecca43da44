"""Sizes, durations and times as people write them, and back.

SIZE as in Joblet: `512` is bytes; KB, MB, GB, TB and Ki, Mi, Gi, Ti (with or without a B) are all powers of 1024.
DUR: `500ms`, `10s`, `5m`, `1h30m`, `2d`. TIME: RFC 3339, a duration back from now, or `now`.
"""

import re
from datetime import UTC, datetime
from typing import Final

from common.errors import invalid

SIZE_BYTES_MAX: Final = 2**63 - 1
DURATION_MS_MAX: Final = 10 * 365 * 24 * 3600 * 1000
SECONDS_BELOW: Final = 10**11
"""A time in a request below this is Unix seconds, else Unix nanoseconds (requirement X14)."""
TIME_NS_MAX: Final = 2**63 - 1
"""The last time that a message has room for, in the year 2262; seconds in a request reach beyond."""

_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d{1,19})(?:(B?)|([KMGT])(B|i|iB))", re.ASCII)
_DURATION_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|s|m|h|d)", re.ASCII)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)


def parse_size(text: str, *, bare_unit_bytes: int = 1) -> int:
    """Bytes in a SIZE. `bare_unit_bytes` is what a number without a unit counts, such as 2**20 for `--max-memory`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise invalid(
            f"malformed size {text[:40]!r}", "use a number with KB, MB, GB, TB, Ki, Mi, Gi or Ti, such as 10MB"
        )
    number, plain_byte, unit, _ = match.groups()
    factor = _UNITS[unit] if unit else (1 if plain_byte else bare_unit_bytes)
    size = int(number) * factor
    if size > SIZE_BYTES_MAX:
        raise invalid(f"size {text[:40]!r} is too large", f"at most {SIZE_BYTES_MAX} bytes")
    return size


def format_size(size_bytes: int) -> str:
    """A size for people: `1.5 GiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size_bytes} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def parse_duration_ms(text: str) -> int:
    """Milliseconds in a DUR such as `1h30m`."""
    rest, total = text.strip(), 0.0
    while rest:
        match = _DURATION.match(rest)
        if match is None:
            break
        total += float(match[1]) * _DURATION_MS[match[2]]
        rest = rest[match.end() :]
    if rest or not text.strip():
        raise invalid(f"malformed duration {text[:40]!r}", "use such as 500ms, 10s, 5m or 1h30m")
    if total > DURATION_MS_MAX:
        raise invalid(f"duration {text[:40]!r} is too long", "at most 10 years")
    return round(total)


def format_duration_ms(duration_ms: int) -> str:
    """A duration as parse_duration_ms reads it: `1h30m`."""
    if duration_ms < 1000:
        return f"{duration_ms}ms"
    parts, rest = [], duration_ms
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, _DURATION_MS[unit])
        if count:
            parts.append(f"{count}{unit}")
    if rest:
        parts.append(f"{rest}ms")
    return "".join(parts)


def parse_time_ns(text: str, *, now_ns: int) -> int:
    """Unix nanoseconds of a TIME. A time without an offset is refused: nobody knows whose clock is meant."""
    word = text.strip()
    if word == "now":
        return now_ns
    if _DURATION.match(word):
        return now_ns - parse_duration_ms(word) * 1_000_000
    if not _RFC3339.fullmatch(word):
        raise invalid(f"malformed time {text[:40]!r}", "use 2024-01-01T00:00:00Z, a duration back such as 1h, or now")
    whole, dot, rest = word.upper().replace(" ", "T").partition(".")
    digits = ""
    if dot:
        digits = re.match(r"\d+", rest)[0]  # type: ignore[index]  # the pattern above guarantees a digit
        whole += rest[len(digits) :]
    try:
        instant = datetime.fromisoformat(whole)
    except ValueError as cause:
        raise invalid(f"no such time {text[:40]!r}", str(cause)) from cause
    return int(instant.timestamp()) * 1_000_000_000 + int(digits.ljust(9, "0") or 0)


def format_time_ns(time_ns: int) -> str:
    """RFC 3339 in UTC with nanoseconds as needed: `2024-01-01T00:00:00.25Z`."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return f"{text}{fraction}Z"


def request_time_ns(value: int) -> int:
    """A time of a request in Unix nanoseconds: values below 10^11 are Unix seconds; 0 stays 0 (not bounded)."""
    if value < 0:
        raise invalid(f"time {value} is negative", "use Unix nanoseconds or seconds")
    return value * 1_000_000_000 if value < SECONDS_BELOW else value


def as_request_time(time_ns: int) -> int:
    """What `request_time_ns` gave, for a request of our own: it means the same there, and fits into 64 bits.

    Nanoseconds of the first 100 s of 1970 would be taken for seconds there, so they go as seconds, which they came as.
    """
    return time_ns // 1_000_000_000 if time_ns < SECONDS_BELOW else min(time_ns, TIME_NS_MAX)
