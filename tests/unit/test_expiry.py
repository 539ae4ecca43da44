"""When certificates end, and what counts as soon."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from common.errors import JobletError, Reason
from common.expiry import Expiry, days_left, expiries, is_soon, nanoseconds
from tests.certificates import Authority

DAY_NS = 86_400 * 10**9


@pytest.fixture(scope="module")
def authority() -> Authority:
    """One for all."""
    return Authority()


def end_ns(pem: bytes) -> int:
    """The end of a certificate, independently of the module."""
    return int(x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()) * 10**9


def test_each_certificate_is_told_with_name_subject_and_end(authority: Authority) -> None:
    """In the order given; the subject as RFC 4514 writes it."""
    server = authority.server().cert
    found = expiries({"server": server, "ca": authority.pem}, now_ns=0, warning_days=14)
    assert found == (
        Expiry("server", "CN=localhost", end_ns(server), soon=False),
        Expiry("ca", "CN=test authority", end_ns(authority.pem), soon=False),
    )


def test_a_bundle_gives_one_for_each_certificate(authority: Authority) -> None:
    """While a CA is rolled over, the old one and the new one are both told."""
    other = Authority("next authority")
    found = expiries({"ca": authority.pem + other.pem}, now_ns=0, warning_days=0)
    assert [(each.name, each.subject) for each in found] == [("ca", "CN=test authority"), ("ca", "CN=next authority")]


def test_soon_begins_exactly_so_many_days_before_the_end(authority: Authority) -> None:
    """At the bound it is soon, a nanosecond before it is not; what is over is soon, and 0 days warn at the end only."""
    pem = authority.server().cert
    end = end_ns(pem)

    def soon(now_ns: int, days: int) -> bool:
        (found,) = expiries({"server": pem}, now_ns=now_ns, warning_days=days)
        return found.soon

    assert soon(end - 14 * DAY_NS, 14)
    assert not soon(end - 14 * DAY_NS - 1, 14)
    assert soon(end + 1, 14)
    assert soon(end, 0)
    assert not soon(end - 1, 0)
    assert is_soon(end, now_ns=end - DAY_NS, warning_days=1)


def test_days_left_are_whole_and_negative_when_it_is_over() -> None:
    """The day before the last is 1, the last hours are 0, a second late is -1."""
    assert days_left(DAY_NS * 10, now_ns=DAY_NS * 9) == 1
    assert days_left(DAY_NS * 10, now_ns=DAY_NS * 9 + 1) == 0
    assert days_left(DAY_NS * 10, now_ns=DAY_NS * 10 + 1) == -1


def test_nanoseconds_of_a_time_beyond_2038_are_exact() -> None:
    """Far ends, as `--dev` makes them, lose nothing."""
    assert nanoseconds(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=40_000)) == 40_000 * DAY_NS


@pytest.mark.parametrize("broken", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_named(broken: bytes) -> None:
    """A typed error with the name under which it was given."""
    with pytest.raises(JobletError, match="certificate server cannot be read") as caught:
        expiries({"server": broken}, now_ns=0, warning_days=14)
    assert caught.value.reason is Reason.INVALID
