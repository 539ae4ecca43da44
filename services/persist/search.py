"""Looking for the entries that a query wants in the text of a member, without decoding what is not wanted. Pure.

Where every wanted entry has some text in it (a filter is such a text, an expression may hold one), lines of JSON are
looked for that have it, too, escaped as it is there. Such a line is a candidate only: the text may stand in its
metadata, or a part of an escape may look like it; and a line in base64 is always one. So each is decoded and tried.
Where there is no such text, or it is everywhere, the contents of the member are decoded in bulk and tried as one.

A gap is told whatever is looked for: what is missing might have been wanted.
"""

import re
from typing import Final

import re2

from common.matching import HEAVY_PROGRAM_SIZE, Matcher, RegexMatcher, TextMatcher
from services.persist import lines
from services.persist.lines import Entry
from services.persist.member import Span

PROBED: Final = 32
"""So many candidates are taken before it is asked whether there are too many."""
CANDIDATE_BYTES: Final = 2048
"""More than one candidate in so much text is too many: looking for one costs as much as ten lines decoded in bulk."""
SHORT_TEXT_BYTES: Final = 8192
"""In so little text it is faster to look than to have RE2 look."""

_TOKENS: Final = re.compile(r"\[\^?\]?(?:\[:\^?\w+:\]|[^\]])*\]|\{[^}]*\}|.", re.DOTALL)
_OPAQUE: Final = frozenset("|()\\")
"""Expressions with one of these are not looked into."""
_SPECIAL: Final = frozenset(".^$*+?[{")


class Search:
    """What one query looks for."""

    def __init__(self, matcher: Matcher, literal: str) -> None:
        self.matcher: Final = matcher
        self._escaped = lines.escaped(literal)
        self._scanner = _scanner(self._escaped.decode()) if literal else None
        size = matcher.program_size if isinstance(matcher, RegexMatcher) else 0
        self.weight: Final = 1 + size // HEAVY_PROGRAM_SIZE
        """How much slower than a text this may be, at its worst."""

    @classmethod
    def of(cls, matcher: Matcher) -> "Search":
        """That for what `matcher` wants."""
        match matcher:
            case TextMatcher():
                return cls(matcher, matcher.text)
            case RegexMatcher():
                return cls(matcher, required_text(matcher.pattern))
            case _:
                return cls(matcher, "")

    def entries(self, text: bytes, span: Span, candidates: list[bytes] | None) -> list[Entry]:
        """The wanted entries of a member, of `candidates` where there are some, and its gaps.

        Raises `msgspec.DecodeError` when the text is not ours.
        """
        if candidates is not None:
            return self._wanted(lines.decode(b"\n".join(candidates)))
        data = lines.decode_data(text, count=span.lines)
        if data is None:
            return self._wanted(lines.decode(text))
        return lines.decode_some(text, self.numbers(data))

    def candidates(self, text: bytes) -> list[bytes] | None:
        """The lines of `text` that may be wanted; None: too many to be looked at one by one, or nobody knows."""
        if self._scanner is None:
            return None
        if len(text) < SHORT_TEXT_BYTES and not any(mark in text for mark in (self._escaped, *_MARKS)):
            return []
        found: dict[int, bytes] = {}
        for scanner in (self._scanner, *_marked_lines):
            position = count = 0
            while (hit := scanner.search(text, position)) is not None:
                start = text.rfind(b"\n", 0, hit.start()) + 1
                position = text.find(b"\n", hit.start()) + 1 or len(text)
                found[start] = text[start:position].removesuffix(b"\n")
                count += 1
                if count >= PROBED and count * CANDIDATE_BYTES > position:
                    return None
        return [found[start] for start in sorted(found)]

    def numbers(self, data: bytes) -> list[int]:
        """Which lines of `data` are wanted, from 0."""
        if isinstance(self.matcher, TextMatcher):
            needle = self.matcher.text.encode()
            return [number for number, line in enumerate(data.split(b"\n")) if needle in line]
        found, number, position = [], 0, 0
        for start, _ in self.matcher.wanted(data):
            number += data.count(b"\n", position, start)
            position = start
            found.append(number)
        return found

    def _wanted(self, entries: list[Entry]) -> list[Entry]:
        matches = self.matcher.matches
        return [entry for entry in entries if entry.gap or matches(entry.raw)]


def required_text(pattern: str) -> str:
    """The longest text that stands in whatever the expression `pattern` matches; empty when that is not plain to see.

    Text between operators, that is, without the character that an operator makes optional or repeats.
    """
    if not _OPAQUE.isdisjoint(pattern):
        return ""
    longest = current = ""
    for token in _TOKENS.findall(pattern):
        if token[0] not in _SPECIAL or token in ("[", "{"):
            current += token
            continue
        optional = token[0] in "*?{"
        longest, current = max(longest, current[:-1] if optional else current, key=len), ""
    return max(longest, current, key=len)


def _scanner(text: str) -> re2._Regexp:
    # RE2 rather than bytes.find: it looks for the first and the last byte of a text at once, and takes a fifth of the
    # time where the single bytes are frequent.
    options = re2.Options()
    options.literal = True
    options.log_errors = False
    return re2.compile(text, options)


_MARKS: Final = (lines.BINARY_MARK.encode(), lines.GAP_MARK.encode())
"""Of lines that are always candidates."""
_marked_lines: Final = tuple(_scanner(mark.decode()) for mark in _MARKS)
