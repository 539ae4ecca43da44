"""The words of a `worker-service start` line: which are options, and what is in the one string of arguments. Pure.

Here: the two splittings. Not here: the options themselves (`verbs.py`).
"""

import difflib
import shlex
from collections.abc import Collection, Sequence

from common.errors import invalid

SIMILARITY = 0.75
"""Of difflib: `-memroy` is -memory, `-la` is nothing."""


class UnknownOption(Exception):
    """A word that looks like an option and is none. `nearest`: what was meant, perhaps."""

    def __init__(self, word: str, nearest: str) -> None:
        super().__init__(word)
        self.word = word
        self.nearest = nearest


class MissingValue(Exception):
    """The last word is an option that takes a value."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


def arranged(words: Sequence[str], *, valued: Collection[str], bare: Collection[str]) -> list[str]:
    """`words` with the options first, then `--`, then all others: arguments of a program often begin with a dash.

    `valued` and `bare` are the options that take a value and those that take none. Raises UnknownOption for a word that
    resembles one of them: a misspelled limit must not become an argument. Raises MissingValue: `--` is nobody's value.
    """
    options: list[str] = []
    others: list[str] = []
    left = list(reversed(words))
    while left:
        word = left.pop()
        name, equals, _ = word.partition("=")
        if word == "--":
            others += reversed(left)
            break
        if name in valued:
            if not equals and not left:
                raise MissingValue(word)
            options += [word] if equals else [word, left.pop()]
        elif word in bare:
            options.append(word)
        else:
            _check_no_option(name, (*valued, *bare), word)
            others.append(word)
    return [*options, "--", *others]


def _check_no_option(name: str, known: Sequence[str], word: str) -> None:
    if name.startswith("-") and len(word.split()) == 1:  # with white space it is arguments
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=SIMILARITY)
        if nearest:
            raise UnknownOption(word, nearest[0])


def arguments(text: str) -> tuple[str, ...]:
    """The arguments in one string, split as a POSIX shell splits words and quotes: sh(1p), "Quoting".

    Nothing is expanded: no variable, no pattern, no command; `#` begins no comment. Raises INVALID for an open quote.
    """
    try:
        return tuple(shlex.split(text, comments=False, posix=True))
    except ValueError as cause:
        raise invalid(f"the arguments {text[:80]!r} have an open quote or end in a backslash", "close it") from cause
