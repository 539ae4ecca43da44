"""Sizes, durations and times: the exact table, and everything that only looks like one."""

import pytest

from common.errors import JobletError, Reason
from common.quantities import (
    DURATION_MS_MAX,
    SIZE_BYTES_MAX,
    as_request_time,
    format_duration_ms,
    format_size,
    format_time_ns,
    parse_duration_ms,
    parse_size,
    parse_time_ns,
    request_time_ns,
)

NOW_NS = 1_700_000_000_123_456_789
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40


@pytest.mark.requirement("S1.51")
@pytest.mark.threat("D27")
@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512", 512),
        ("0", 0),
        ("512B", 512),
        ("10KB", 10 * KIB),
        ("5MB", 5 * MIB),
        ("1GB", GIB),
        ("2TB", 2 * TIB),
        ("100Mi", 100 * MIB),
        ("2Gi", 2 * GIB),
        ("3Ki", 3 * KIB),
        ("1Ti", TIB),
        ("1KiB", KIB),
        ("4MiB", 4 * MIB),
        ("4GiB", 4 * GIB),
        (" 10KB ", 10 * KIB),
        ("007KB", 7 * KIB),
        (str(SIZE_BYTES_MAX), SIZE_BYTES_MAX),
    ],
)
def test_size_table(text: str, size_bytes: int) -> None:
    """Every unit counts in powers of 1024, with and without an i."""
    assert parse_size(text) == size_bytes


@pytest.mark.requirement("S1.51")
def test_bare_number_counts_in_the_unit_of_its_option() -> None:
    """`--max-memory 100` means MB; a number with a unit, bytes included, means what it says."""
    assert parse_size("100", bare_unit_bytes=MIB) == 100 * MIB
    assert parse_size("100B", bare_unit_bytes=MIB) == 100
    assert parse_size("100KB", bare_unit_bytes=MIB) == 100 * KIB


@pytest.mark.threat("D27")
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        "+1",
        "1e999GB",
        "1e3",
        "NaN",
        "inf",
        "0x10",
        "1_000",
        "1.5GB",
        "1,5GB",
        "KB",
        "10 KB",
        "10kb",
        "10Kb",
        "10K",
        "10PB",
        "10KBB",
        "10Bi",
        "١٠KB",
        "１０MB",
        "10\x00KB",
        "10KB\n10KB",
        "9" * 20,
        "9" * 10000,
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    """Signs, floats, unicode digits, unknown units: INVALID with the text and an example in it."""
    with pytest.raises(JobletError) as caught:
        parse_size(text)
    assert caught.value.reason is Reason.INVALID
    assert len(str(caught.value)) < 300


@pytest.mark.threat("D27")
@pytest.mark.parametrize("text", [str(SIZE_BYTES_MAX + 1), "8388608TB", "9999999999999999999TB"])
def test_size_that_overflows_is_refused(text: str) -> None:
    """One byte over 2^63-1 is refused, not wrapped."""
    with pytest.raises(JobletError, match="too large"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * KIB, "1.5 MiB"), (GIB, "1.0 GiB"), (3 * TIB, "3.0 TiB")],
)
def test_size_for_people(size_bytes: int, text: str) -> None:
    """One decimal, binary units."""
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [
        ("500ms", 500),
        ("10s", 10_000),
        ("5m", 300_000),
        ("1h30m", 5_400_000),
        ("2d", 172_800_000),
        ("1.5s", 1500),
        ("0s", 0),
        ("0.1s", 100),
        ("3650d", DURATION_MS_MAX),
    ],
)
def test_duration_table(text: str, duration_ms: int) -> None:
    """The forms of cli.md, and sums of them."""
    assert parse_duration_ms(text) == duration_ms


@pytest.mark.parametrize("text", ["", " ", "10", "-1s", "+1s", "1e9s", "NaNs", "infs", "1w", "1H", "1h 30m", "١s", "s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """A number without a unit is no duration: nobody knows whether seconds or milliseconds are meant."""
    with pytest.raises(JobletError) as caught:
        parse_duration_ms(text)
    assert caught.value.reason is Reason.INVALID


@pytest.mark.parametrize("text", ["3651d", "999999999999d", "999999999999d" * 50])
def test_duration_that_is_too_long_is_refused(text: str) -> None:
    """The bound is 10 years, whatever the unit."""
    with pytest.raises(JobletError, match="too long"):
        parse_duration_ms(text)


@pytest.mark.parametrize(
    ("duration_ms", "text"), [(0, "0ms"), (999, "999ms"), (5_400_000, "1h30m"), (86_401_001, "1d1s1ms")]
)
def test_duration_for_people(duration_ms: int, text: str) -> None:
    """What is printed can be read back."""
    assert format_duration_ms(duration_ms) == text
    assert parse_duration_ms(text) == duration_ms


@pytest.mark.requirement("S0.50")
@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2024-01-01T00:00:00Z", 1_704_067_200_000_000_000),
        ("2024-01-01t00:00:00z", 1_704_067_200_000_000_000),
        ("2024-01-01 00:00:00Z", 1_704_067_200_000_000_000),
        ("2024-01-01T01:00:00+01:00", 1_704_067_200_000_000_000),
        ("2024-01-01T00:00:00.123456789Z", 1_704_067_200_123_456_789),
        ("2024-01-01T00:00:00.5-00:30", 1_704_069_000_500_000_000),
    ],
)
def test_rfc3339(text: str, time_ns: int) -> None:
    """RFC 3339 with any offset, exact to the nanosecond."""
    assert parse_time_ns(text, now_ns=NOW_NS) == time_ns


@pytest.mark.requirement("S0.53")
def test_relative_times() -> None:
    """A duration counts back from now, and `now` is now."""
    assert parse_time_ns("now", now_ns=NOW_NS) == NOW_NS
    assert parse_time_ns("1h", now_ns=NOW_NS) == NOW_NS - 3600 * 10**9
    assert parse_time_ns("1m30s", now_ns=NOW_NS) == NOW_NS - 90 * 10**9


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2024-01-01",
        "2024-01-01T00:00:00",
        "2024-13-01T00:00:00Z",
        "2024-02-30T00:00:00Z",
        "2024-01-01T24:00:00Z",
        "2024-01-01T00:00:00+99:99",
        "٢٠٢٤-01-01T00:00:00Z",
        "1h ago",
        "1hfoo",
        "-1h",
        "0000-01-01T00:00:00Z",
        "2024-01-01T00:00:00.1234567890Z",
        "NOW",
        "1704067200",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    """Impossible dates, missing offsets and words: INVALID, never another exception."""
    with pytest.raises(JobletError) as caught:
        parse_time_ns(text, now_ns=NOW_NS)
    assert caught.value.reason is Reason.INVALID


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999999-14:00"])
def test_times_at_the_edge_of_the_calendar_do_not_break(text: str) -> None:
    """An instant that lies outside the years 1 to 9999 in UTC is still a number."""
    assert isinstance(parse_time_ns(text, now_ns=NOW_NS), int)


def test_time_for_people() -> None:
    """UTC, with as many digits as needed."""
    assert format_time_ns(1_704_067_200_250_000_000) == "2024-01-01T00:00:00.25Z"
    assert format_time_ns(1_704_067_200_000_000_000) == "2024-01-01T00:00:00Z"


@pytest.mark.requirement("S0.45")
@pytest.mark.parametrize(
    ("value", "time_ns"),
    [(0, 0), (1, 10**9), (10**11 - 1, (10**11 - 1) * 10**9), (10**11, 10**11), (NOW_NS, NOW_NS)],
)
def test_request_times(value: int, time_ns: int) -> None:
    """Below 10^11 a request's time is Unix seconds, from there on nanoseconds; 0 stays "not bounded"."""
    assert request_time_ns(value) == time_ns


@pytest.mark.parametrize("value", [0, 1, 2, 99, 100, 10**10, 10**11 - 1, 10**11, NOW_NS, 2**63 - 1])
def test_a_request_handed_on_means_the_same(value: int) -> None:
    """A time that was read is asked for again in 64 bits: the first seconds of 1970 are no seconds of another year."""
    time_ns = request_time_ns(value)
    assert request_time_ns(as_request_time(time_ns)) == min(time_ns, 2**63 - 1)
    assert as_request_time(time_ns) < 2**63


def test_negative_request_time_is_refused() -> None:
    """Before 1970 there were no jobs."""
    with pytest.raises(JobletError, match="negative"):
        request_time_ns(-1)
