"""Log lines that vary as real ones do, the same in every run: exactly 100 bytes each, line end included.

Belongs here: making them, and what of them the filters look for. Does not belong here: who reads them. gzip makes them
about five times smaller, as it does with logs of services; lines that are all alike would flatter whoever compresses.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

LINE_BYTES: Final = 100
RARE_EVERY: Final = 10_000
RARE_TEXT: Final = "deadlock detected"
"""In one line of RARE_EVERY."""
RARE_PATTERN: Final = "deadlock (detected|found) .*table=[a-z]+_[0-9]+"
"""Matches the same lines; means the same to RE2 and to grep -E."""

_CHUNK_LINES: Final = 10_000
_EPOCH_S: Final = 1_700_000_000
_MULTIPLIER: Final = 6364136223846793005  # Knuth's linear congruential generator, MMIX
_INCREMENT: Final = 1442695040888963407
_LEVELS: Final = ("INFO ", "INFO ", "INFO ", "INFO ", "DEBUG", "DEBUG", "WARN ", "INFO ")
_MESSAGES: Final = (
    "GET /api/v1/users/%d status=200 bytes=%d",
    "GET /api/v1/orders/%d status=200 bytes=%d",
    "POST /api/v1/orders/%d status=201 bytes=%d",
    "cache hit key=session:%d age=%d",
    "cache miss key=session:%d age=%d",
    "job %d finished after %d ms",
    "connection %d closed by peer, sent=%d",
    "retrying upload part=%d attempt=%d",
)


def write_lines(file: Path, count: int) -> None:
    """Write `count` lines."""
    with file.open("wb") as out:
        for first in range(0, count, _CHUNK_LINES):
            out.write("".join(_lines(first, min(first + _CHUNK_LINES, count))).encode())


def _lines(first: int, end: int) -> Iterator[str]:
    state = first + 1
    for number in range(first, end):
        state = (state * _MULTIPLIER + _INCREMENT) % 2**64
        dice = state >> 33
        if number % RARE_EVERY == RARE_EVERY // 2:
            text = f"deadlock detected on txn={dice % 100_000} table=stock_{dice % 90 + 10}"
            level = "ERROR"
        else:
            text = _MESSAGES[dice % 8] % (dice // 8 % 5000, dice // 40_000 % 1000)
            level = _LEVELS[dice // 64 % 8]
        second, millisecond = divmod(number // 4, 1000)
        clock = _EPOCH_S + second
        line = f"{clock}.{millisecond:03d} {level} api-worker-{dice // 512 % 16:02d} [req={dice % 65536:04x}] {text}"
        yield line[: LINE_BYTES - 1].ljust(LINE_BYTES - 1) + "\n"
