"""Which lines a text or a regular expression wants: in a batch exactly the lines that are wanted one by one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import JobletError, Reason
from common.matching import PATTERN_BYTES_MAX, Matcher, RegexMatcher, TextMatcher, matcher

LINES = st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=12)
PATTERNS = ["a", "^a", "a$", "^$", "x*", r"\s+", "[^b]", r"\Aa", r"a\z", "(?i)A", r"\bab\b", "a|^b", "(?s)a.b", r"a\nb"]


def lines_of(found: Matcher, data: bytes) -> list[bytes]:
    """The wanted lines of a batch."""
    return [data[start:end] for start, end in found.wanted(data)]


@given(LINES, st.sampled_from(PATTERNS))
def test_a_batch_gives_the_lines_that_match_alone(lines: list[bytes], pattern: str) -> None:
    """No match reaches over a line end, and anchors mean the line."""
    found = RegexMatcher(pattern)
    batch = b"".join(line + b"\n" for line in lines)
    assert lines_of(found, batch) == [line + b"\n" for line in lines if found.matches(line)]


@given(LINES, st.text(min_size=1, max_size=2))
def test_a_text_is_looked_for_in_each_line(lines: list[bytes], text: str) -> None:
    """The same for a text, whatever is in it."""
    batch = b"".join(line + b"\n" for line in lines)
    assert lines_of(TextMatcher(text), batch) == [line + b"\n" for line in lines if text.encode() in line]


@given(LINES, st.sampled_from(["a", "^a", "a$", "^$", r"\bab\b", "a|^b"]))
def test_it_means_what_other_engines_mean(lines: list[bytes], pattern: str) -> None:
    """Python's own `re` as the judge, where both know the syntax."""
    judge = re.compile(pattern.encode())
    found = RegexMatcher(pattern)
    ascii_lines = [line for line in lines if line.isascii() and b"\r" not in line]
    assert [found.matches(line) for line in ascii_lines] == [bool(judge.search(line)) for line in ascii_lines]


def test_a_last_line_without_an_end() -> None:
    """A partial entry is a line, too."""
    assert lines_of(RegexMatcher("c$"), b"abc\nxc") == [b"abc\n", b"xc"]
    assert lines_of(TextMatcher("c"), b"abc\nxc") == [b"abc\n", b"xc"]


@pytest.mark.parametrize("pattern", ["(", "a)(", "[", "*", r"(a)\1", "(?=a)", "a{1001}", "\udcff"])
def test_no_expression(pattern: str) -> None:
    """Refused in words, also what would only make sense behind our own prefix."""
    with pytest.raises((JobletError, UnicodeEncodeError)) as refused:
        matcher(text="", pattern=pattern)
    if isinstance(refused.value, JobletError):
        assert refused.value.reason is Reason.INVALID


@pytest.mark.threat("C23")
@pytest.mark.parametrize("pattern", [".{900}", ".*a.{400}.*b", r"\pL{10}"])
def test_an_expression_of_too_many_states_is_refused(pattern: str) -> None:
    """What RE2 would take, and then need a minute for one long line."""
    with pytest.raises(JobletError) as refused:
        matcher(text="", pattern=pattern)
    assert refused.value.reason is Reason.INVALID


@pytest.mark.parametrize("pattern", [".{200}", r"[\p{L}\p{N}_]+", "x" * 2000])
def test_an_expression_of_ordinary_size_is_not(pattern: str) -> None:
    """Classes of Unicode and some repetition have room."""
    assert isinstance(matcher(text="", pattern=pattern), RegexMatcher)


def test_bounds() -> None:
    """One of both, and not longer than allowed; nothing asked for is no matcher."""
    assert matcher(text="", pattern="") is None
    assert isinstance(matcher(text="x" * PATTERN_BYTES_MAX, pattern=""), TextMatcher)
    for text, pattern in (("a", "b"), ("x" * (PATTERN_BYTES_MAX + 1), ""), ("", "x" * (PATTERN_BYTES_MAX + 1))):
        with pytest.raises(JobletError):
            matcher(text=text, pattern=pattern)


@pytest.mark.threat("C23")
def test_no_expression_is_slow() -> None:
    """What takes a backtracking engine longer than the universe is old takes a moment here."""
    assert not RegexMatcher("(a+)+$").matches(b"a" * 1_000_000 + b"b")
