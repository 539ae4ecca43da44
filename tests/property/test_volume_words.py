"""What users write about volumes: sizes, names and paths are taken exactly, or refused in words."""

import re
from collections.abc import Callable
from typing import Final, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import JobletError, Reason
from common.identifiers import parse_name
from common.quantities import SIZE_BYTES_MAX, parse_size
from services.api.requests import volume_mount

Taken = TypeVar("Taken")

UNITS: Final = {
    "": 1,
    "B": 1,
    **{f"{letter}{ending}": 1024**power for power, letter in enumerate("KMGT", 1) for ending in ("B", "i", "iB")},
}
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
NEAR: Final = st.text(alphabet="abZ09_.-/\\ \0\n\x1b%~аé\u202e", max_size=70)


def taken(parse: Callable[[], Taken]) -> Taken | None:
    """What it gives; None when it refuses, which it does in words."""
    try:
        return parse()
    except JobletError as error:
        if error.reason is not Reason.INVALID:
            raise
        return None


@pytest.mark.requirement("S1.51")
@given(st.integers(0, 10**19 - 1), st.sampled_from(sorted(UNITS)))
def test_sizes_are_exact_to_the_byte(number: int, unit: str) -> None:
    """Any whole number with any unit is that number times a power of 1024; beyond 2^63-1 it is refused."""
    exact = number * UNITS[unit]
    if exact <= SIZE_BYTES_MAX:
        assert parse_size(f"{number}{unit}") == exact
    else:
        with pytest.raises(JobletError) as caught:
            parse_size(f"{number}{unit}")
        assert caught.value.reason is Reason.INVALID


@pytest.mark.requirement("S1.51")
@given(st.text(alphabet="0123456789.,eE+-_xKMGTPBibk \t\u0661\uff11", max_size=12))
def test_what_is_taken_for_a_size_has_the_form_of_one(text: str) -> None:
    """Digits and a unit of the table, nothing else: no fraction, exponent, sign, or digit of another alphabet."""
    size_bytes = taken(lambda: parse_size(text))
    if size_bytes is None:
        return
    digits = re.match(r"[0-9]+", text.strip())
    assert digits is not None
    assert size_bytes == int(digits[0]) * UNITS[text.strip()[digits.end() :]]


@pytest.mark.threat("D25")
@given(st.one_of(st.text(max_size=70), NEAR, st.from_regex(NAME, fullmatch=True)))
def test_names_are_of_the_allowed_list_or_refused(text: str) -> None:
    """A name that is taken is 1 to 63 ASCII letters, digits, dots, lines; not beginning with a dot or line; no path."""
    name = taken(lambda: parse_name(text, "volume"))
    assert name == (text if NAME.fullmatch(text) else None)
    if name is None:
        return
    assert not {"/", "\0", "\n"} & {*text}
    assert text not in {".", ".."}


@pytest.mark.threat("D25")
@given(st.one_of(st.text(max_size=40), st.text(alphabet="/.ab\0", max_size=20), NEAR))
def test_paths_are_absolute_and_plain_or_refused(path: str) -> None:
    """No step up, no NUL, nothing of the kernel's; without one it is /volumes/<name>."""
    mount = taken(lambda: volume_mount("path", "data", path, read_only=False))
    if mount is None:
        return
    assert not path or mount.path == f"/{re.sub('/+', '/', path).strip('/')}"
    first, *parts = mount.path.split("/")
    assert first == ""
    assert parts
    assert not {"", ".", ".."} & {*parts}
    assert "\0" not in mount.path
    assert parts[0] not in {"proc", "sys", "dev"}


@pytest.mark.parametrize("path", ["/proc", "//proc", "/proc/", "///sys//x", "/", "//", "data", "/a/../b", "/a\0b"])
def test_paths_that_are_no_place_for_a_volume(path: str) -> None:
    """The kernel's, in any spelling, the root, and what is not absolute and plain."""
    assert taken(lambda: volume_mount("path", "data", path, read_only=False)) is None
