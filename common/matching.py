"""Which entries a reader wants: a text, or a regular expression that no input can make slow. Pure.

The engine is RE2 (https://github.com/google/re2/wiki/Syntax): linear in the text, bounded in memory. An expression is
tried on a whole batch of lines at once, with RE2's `never_nl`, so that no match reaches over a line end: ten times as
fast as line by line. What is not UTF-8 matches where its bytes allow it; a line end is no part of an entry.
"""

from collections.abc import Iterator
from typing import Final, Protocol

import re2

from common.errors import invalid

PATTERN_BYTES_MAX: Final = 4096
ENGINE_BYTES_MAX: Final = 8 * 2**20
"""Memory of one compiled expression; an expression that needs more is refused."""
PROGRAM_SIZE_MAX: Final = 3000
"""Instructions of one compiled expression. Where its states do not fit into memory, RE2 tries all of them at each byte:
a mebibyte without a line end takes up to 3 ms an instruction, so a bound of memory alone would let it take a minute."""
HEAVY_PROGRAM_SIZE: Final = 256
"""A larger one may hold its thread for long; RE2 lets the other threads run meanwhile."""
_TEXT_ANCHORS: Final = ("\\A", "\\z")
"""They mean the ends of an entry, and in a batch they would mean the ends of the batch."""


class Matcher(Protocol):
    """Tells wanted entries."""

    def matches(self, entry: bytes) -> bool:
        """Whether `entry`, given without its line end, is wanted."""

    def wanted(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Start and end of each wanted line of `data`, in order; a line end belongs to its line."""


class TextMatcher:
    """Entries that contain `text`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._needle = text.encode()

    def matches(self, entry: bytes) -> bool:
        """See Matcher."""
        return self._needle in entry

    def wanted(self, data: bytes) -> Iterator[tuple[int, int]]:
        """See Matcher."""
        needle, position = self._needle, 0
        if b"\n" in needle:
            return  # no entry has a line end in it
        while (found := data.find(needle, position)) >= 0:
            start, position = _line_at(data, found)
            yield start, position
            if position >= len(data):
                return


class RegexMatcher:
    """Entries in which `pattern` matches. Raises JobletError(INVALID) for what is no expression of RE2's."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        _compiled(pattern)  # alone: what is put before it below must not make sense of it
        self._expression = _compiled(f"(?m){pattern}")
        self._by_line = any(anchor in pattern for anchor in _TEXT_ANCHORS)

    @property
    def program_size(self) -> int:
        """Instructions of the compiled expression: how slow it can be."""
        size: int = self._expression.programsize
        return size

    @property
    def is_heavy(self) -> bool:
        """Whether it must not be tried where others wait for the thread."""
        return self.program_size > HEAVY_PROGRAM_SIZE

    def matches(self, entry: bytes) -> bool:
        """See Matcher."""
        return self._expression.search(entry) is not None

    def wanted(self, data: bytes) -> Iterator[tuple[int, int]]:
        """See Matcher."""
        search, position, size = self._expression.search, 0, len(data)
        while position < size:
            if self._by_line:
                start, end = _line_at(data, position)
                if self.matches(data[start:end].removesuffix(b"\n")):
                    yield start, end
                position = end
                continue
            found = search(data, position)
            if found is None or found.start() >= size:
                return  # behind the last line end is no line
            start, position = _line_at(data, found.start())
            yield start, position


def matcher(*, text: str, pattern: str) -> Matcher | None:
    """What `text` or `pattern` asks for; None: every entry. Raises JobletError(INVALID), also for both at once."""
    if text and pattern:
        raise invalid("filter and regex exclude each other", "say it all in one regular expression")
    for name, value in (("filter", text), ("regular expression", pattern)):
        if len(value.encode()) > PATTERN_BYTES_MAX:
            raise invalid(f"the {name} is too long", f"at most {PATTERN_BYTES_MAX} bytes")
    if pattern:
        return RegexMatcher(pattern)
    return TextMatcher(text) if text else None


def _line_at(data: bytes, position: int) -> tuple[int, int]:
    end = data.find(b"\n", position)
    return data.rfind(b"\n", 0, position) + 1, len(data) if end < 0 else end + 1


def _compiled(pattern: str) -> re2._Regexp:
    options = re2.Options()
    options.never_nl = True
    options.log_errors = False
    options.max_mem = ENGINE_BYTES_MAX
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as cause:
        why = cause.args[0].decode(errors="replace") if isinstance(cause.args[0], bytes) else str(cause)
        raise invalid(
            f"no regular expression: {why[:200]}", "see https://github.com/google/re2/wiki/Syntax; no back references"
        ) from cause
    if compiled.programsize > PROGRAM_SIZE_MAX:
        raise invalid("the regular expression is too large", "repeat less, or say it with fewer classes")
    return compiled
