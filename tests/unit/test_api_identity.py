"""Certificates to principals: one name of one spelling, for clients only, in its time; and everything that is refused.

Where roles stand: test_api_schemes.py. What TLS refuses before: tests/security/test_api_certificates.py.
"""

import datetime
import time

import pytest
from cryptography import x509

from common.errors import JobletError, Reason
from services.api.identity import Role, principal_of
from tests.certificates import Authority, Identity
from tests.odd_callers import ADMIN, ANN, FINE, PLAIN, odd_callers
from tests.odd_certificates import CN, Encoding, issue, text

HOUR = datetime.timedelta(hours=1)
AUTHORITY = Authority()


def roles(identity: Identity) -> frozenset[Role]:
    """The roles of a certificate now."""
    return principal_of(identity.cert, now_s=time.time()).roles


def refusal(identity: Identity, *, now_s: float | None = None) -> JobletError:
    """The error for a certificate."""
    with pytest.raises(JobletError) as refused:
        principal_of(identity.cert, now_s=time.time() if now_s is None else now_s)
    return refused.value


def why(identity: Identity) -> str:
    """Why it is UNAUTHENTICATED."""
    error = refusal(identity)
    assert error.reason is Reason.UNAUTHENTICATED
    assert error.detail == "ask your operator for a new certificate"
    return error.message.removeprefix("client certificate refused: ")


@pytest.mark.parametrize("name", ["a", "ann", "ANN", "7", "ann.lee@example.org", "ann_lee-2", "a" * 64])
def test_ordinary_names_are_taken_as_they_are(name: str) -> None:
    """Upper and lower case are two owners; nothing is changed."""
    assert principal_of(AUTHORITY.client(name, "user").cert, now_s=time.time()).name == name


@pytest.mark.parametrize("encoding", PLAIN, ids=lambda encoding: encoding.name)
def test_a_name_may_be_a_utf8string_or_a_printablestring(encoding: Encoding) -> None:
    """What openssl writes by default, and what authorities must write. In other types: the table below."""
    assert roles(issue(AUTHORITY, [text(CN, "ann", encoding)], [ADMIN])) == {Role.ADMIN}


ODD = odd_callers(AUTHORITY)


@pytest.mark.filterwarnings("ignore:Attribute's length")
@pytest.mark.threat("D05")
@pytest.mark.threat("D06")
@pytest.mark.threat("D07")
@pytest.mark.threat("D10")
@pytest.mark.parametrize("odd", ODD)
def test_the_table_of_odd_certificates(odd: str) -> None:
    """Each is refused for its own reason, although all of them have a role and a signature that is good."""
    identity, expected = ODD[odd]
    assert why(identity) == expected


@pytest.mark.parametrize("extensions", FINE.values(), ids=FINE)
def test_ordinary_certificates_are_taken(extensions: list[tuple[x509.ExtensionType, bool]]) -> None:
    """The other side of the table of odd ones: what differs from them in one point is accepted."""
    assert roles(issue(AUTHORITY, [ANN], [ADMIN], extensions=extensions)) == {Role.ADMIN}


@pytest.mark.threat("D03")
def test_the_time_is_compared_on_every_call() -> None:
    """A certificate that was accepted, and is cached, is refused once its time is over; and before it began."""
    identity = AUTHORITY.issue(["ann"], ["user"], not_before=-HOUR, not_after=HOUR)
    now_s = time.time()
    assert principal_of(identity.cert, now_s=now_s).name == "ann"
    assert "expired" in refusal(identity, now_s=now_s + 3601).message
    assert "not valid yet" in refusal(identity, now_s=now_s - 3700).message


def test_garbage_is_no_certificate() -> None:
    """Whatever bytes arrive, there is an answer."""
    for pem in (b"", b"x" * 100_000, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        assert refusal(Identity(pem, b"")).reason is Reason.UNAUTHENTICATED
