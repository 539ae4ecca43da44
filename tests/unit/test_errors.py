"""Errors that cross processes: their words are a contract."""

from collections.abc import Callable

import pytest

from common.errors import JobletError, Reason, exhausted, invalid, not_found, precondition, unavailable

WORDS = [
    "invalid",
    "unauthenticated",
    "denied",
    "not_found",
    "exists",
    "precondition",
    "exhausted",
    "unavailable",
    "deadline",
    "unimplemented",
    "data_loss",
    "internal",
]


def test_words_on_the_wire_do_not_change() -> None:
    """An older service understands the reasons of a newer one."""
    assert [reason.value for reason in Reason] == WORDS


@pytest.mark.requirement("T.8")
@pytest.mark.parametrize(
    ("make", "reason", "retryable"),
    [
        (invalid, Reason.INVALID, False),
        (not_found, Reason.NOT_FOUND, False),
        (precondition, Reason.PRECONDITION, False),
        (exhausted, Reason.EXHAUSTED, True),
        (unavailable, Reason.UNAVAILABLE, True),
    ],
)
def test_constructors(make: Callable[[str, str], JobletError], reason: Reason, *, retryable: bool) -> None:
    """Each says why, what to do, and whether trying again may help."""
    error = make("tried this", "do that")
    assert (error.reason, error.message, error.detail, error.retryable) == (reason, "tried this", "do that", retryable)
    assert str(error) == "tried this: do that"


def test_error_without_detail_is_its_message() -> None:
    """No dangling colon."""
    assert str(JobletError(Reason.INTERNAL, "broken")) == "broken"
