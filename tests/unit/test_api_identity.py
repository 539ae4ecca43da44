"""Certificates to principals: every source of roles, and everything that is refused."""

import datetime
import time

import pytest

from common.errors import JobletError, Reason
from services.api.identity import Role, principal_of, utf8_string
from tests.certificates import (
    ADMIN_MARK,
    CLIENT,
    READER_MARK,
    ROLES_EXTENSION,
    SERVER,
    Authority,
    Identity,
    utf8_der,
)

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


@pytest.mark.requirement("S3.25")
@pytest.mark.requirement("S4.19")
@pytest.mark.requirement("S2.24")
def test_roles_come_from_three_places_and_add_up() -> None:
    """Organizations, the UTF8String extension with one role or several, and the two marks: their union counts."""
    assert roles(AUTHORITY.client("ann", "user")) == {Role.USER}
    assert roles(AUTHORITY.client("ann", "writer", "ACME", "reader")) == {Role.WRITER, Role.READER}
    extension = AUTHORITY.issue(["ann"], extensions=[(ROLES_EXTENSION, utf8_der("reader, writer"))])
    assert roles(extension) == {Role.READER, Role.WRITER}
    assert roles(AUTHORITY.issue(["ann"], extensions=[(ADMIN_MARK, b"\x05\x00")])) == {Role.ADMIN}
    both = AUTHORITY.issue(["ann"], ["user"], extensions=[(READER_MARK, b"\x05\x00")])
    principal = principal_of(both.cert, now_s=time.time())
    assert principal.roles == {Role.USER, Role.READER}
    assert (principal.name, principal.scheme) == ("ann", "organization+marks")


@pytest.mark.parametrize("name", ["ann\0.evil", "аnn", "ann lee", " ann", "ann\n", "-ann", "ann/x", "ａnn"])
@pytest.mark.threat("D10")
def test_a_name_has_one_look(name: str) -> None:
    """NUL, letters of other alphabets, spaces, controls and overlong names are no identity."""
    error = refusal(AUTHORITY.client(name, "admin"))
    assert error.reason is Reason.UNAUTHENTICATED
    assert "ambiguous identity" in error.message


@pytest.mark.threat("D10")
@pytest.mark.parametrize("names", [[], ["ann", "bob"], ["ann", "ann"]])
def test_exactly_one_name(names: list[str]) -> None:
    """No common name, or two, is ambiguous; the role does not help."""
    assert "ambiguous identity" in refusal(AUTHORITY.issue(names, ["admin"])).message


@pytest.mark.threat("D05")
@pytest.mark.threat("D06")
@pytest.mark.threat("D07")
def test_client_authentication_is_demanded() -> None:
    """No extended key usage, one for servers only, or an authority's certificate: refused. Both usages are fine."""
    assert refusal(AUTHORITY.issue(["ann"], ["admin"], usages=None)).reason is Reason.UNAUTHENTICATED
    assert refusal(AUTHORITY.issue(["ann"], ["admin"], usages=[SERVER])).reason is Reason.UNAUTHENTICATED
    assert "authority" in refusal(AUTHORITY.issue(["ann"], ["admin"], ca=True)).message
    assert roles(AUTHORITY.issue(["ann"], ["admin"], usages=[SERVER, CLIENT])) == {Role.ADMIN}


@pytest.mark.threat("D03")
def test_the_time_is_compared_on_every_call() -> None:
    """A certificate that was accepted, and is cached, is refused once its time is over; and before it began."""
    identity = AUTHORITY.issue(["ann"], ["user"], not_before=-HOUR, not_after=HOUR)
    now_s = time.time()
    assert principal_of(identity.cert, now_s=now_s).name == "ann"
    assert "expired" in refusal(identity, now_s=now_s + 3601).message
    assert "not valid yet" in refusal(identity, now_s=now_s - 3700).message


@pytest.mark.threat("D08")
def test_no_known_role_is_no_permission() -> None:
    """A name alone, or with unknown roles, is somebody who may do nothing."""
    assert refusal(AUTHORITY.client("ann")).reason is Reason.DENIED
    assert refusal(AUTHORITY.client("ann", "Admin", "root", "admin ")).reason is Reason.DENIED


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x0c",
        b"\x0c\x05admi",
        b"\x0c\x05adminx",
        b"\x13\x05admin",
        b"\x0c\x81\x05admin",
        b"\x0c\x80",
        b"\x0c\x02\xff\xfe",
    ],
)
def test_a_malformed_role_extension_is_refused(der: bytes) -> None:
    """What the authority signed there must be one DER UTF8String and nothing else."""
    with pytest.raises(ValueError, match=r"UTF8String|length|utf-8"):
        utf8_string(der)
    assert (
        refusal(AUTHORITY.issue(["ann"], ["admin"], extensions=[(ROLES_EXTENSION, der)])).reason
        is Reason.UNAUTHENTICATED
    )


def test_garbage_is_no_certificate() -> None:
    """Whatever bytes arrive, there is an answer."""
    for pem in (b"", b"x" * 100_000, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        assert refusal(Identity(pem, b"")).reason is Reason.UNAUTHENTICATED
