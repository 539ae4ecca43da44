"""Certificates to principals: one name of one spelling, for clients only, in its time; and everything that is refused.

Where roles stand: test_api_schemes.py. What TLS refuses before: tests/security/test_api_certificates.py.
"""

import datetime
import time

import pytest
from cryptography import x509

from common.errors import JobletError, Reason
from services.api.identity import Role, principal_of
from tests.certificates import ADMIN_MARK, ROLES_EXTENSION, Authority, Identity, utf8_der
from tests.odd_certificates import CN, FOR_CLIENTS, TEXTS, Encoding, O, issue, text, with_extension_twice

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


AMBIGUOUS = "ambiguous identity: its common name "
CHARACTERS = AMBIGUOUS + ("may have 1 to 64 of A-Z a-z 0-9 . _ @ - only, and begins with one of A-Z a-z 0-9")
BAD_NAMES = {
    "empty": "",
    "NUL": "ann\0.evil",
    "NUL at the end": "ann\0",
    "Cyrillic": "аnn",
    "Greek": "αnn",
    "full width": "ａnn",
    "mathematical": "𝐚nn",
    "accent": "änn",
    "accent that combines": "a\u0308nn",
    "right to left": "\u202enna",
    "isolate": "ann\u2069",
    "zero width": "an\u200bn",
    "soft hyphen": "an\u00adn",
    "byte order mark": "\ufeffann",
    "space": "ann lee",
    "space before": " ann",
    "space behind": "ann ",
    "no-break space": "ann\u00a0",
    "line end": "ann\n",
    "carriage return": "ann\r",
    "tab": "ann\t",
    "escape": "\x1b[31mann",
    "delete": "ann\x7f",
    "C1 control": "ann\x9b",
    "option": "-ann",
    "path": "ann/x",
    "step up": "..",
    "quotes": 'ann"',
    "plus": "ann+boss",
    "comma": "ann,O=admin",
    "equals": "CN=ann",
    "newline before": "\nann",
    "65 characters": "a" * 65,
    "other digits": "ann٣",
}


@pytest.mark.filterwarnings("ignore:Attribute's length")
@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
@pytest.mark.threat("D10")
def test_a_name_has_one_look(name: str) -> None:
    """NUL, letters of other alphabets, spaces, controls, direction, and overlong or empty names are no identity."""
    assert why(issue(AUTHORITY, [text(CN, name)], [text(O, "admin")])) == CHARACTERS


@pytest.mark.parametrize("name", ["a", "ann", "ANN", "7", "ann.lee@example.org", "ann_lee-2", "a" * 64])
def test_ordinary_names_are_taken_as_they_are(name: str) -> None:
    """Upper and lower case are two owners; nothing is changed."""
    assert principal_of(AUTHORITY.client(name, "user").cert, now_s=time.time()).name == name


@pytest.mark.parametrize("encoding", TEXTS, ids=lambda encoding: encoding.name)
@pytest.mark.threat("D10")
def test_a_name_is_a_utf8string_or_a_printablestring(encoding: Encoding) -> None:
    """In BMPString, UniversalString, T61String and the rest one name has several spellings, or none that is certain."""
    identity = issue(AUTHORITY, [text(CN, "ann", encoding)], [text(O, "admin")])
    if encoding in {Encoding.UTF8String, Encoding.PrintableString}:
        assert roles(identity) == {Role.ADMIN}
    else:
        assert why(identity) == AMBIGUOUS + "is neither a UTF8String nor a PrintableString"


ANN, ADMIN = text(CN, "ann"), text(O, "admin")
TWO_NAMES = "ambiguous identity: it has 2 common names, not one"
BESIDE = AMBIGUOUS + "shares its part of the subject with another attribute"
NO_CLIENT = "it was not issued for client authentication"
SOME = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
ROLES = x509.UnrecognizedExtension(ROLES_EXTENSION, utf8_der("admin"))
MARK = x509.UnrecognizedExtension(ADMIN_MARK, b"\x05\x00")
UNKNOWN = "its extension {} is critical and not known here"
USAGE = dict.fromkeys(
    [
        "key_encipherment",
        "data_encipherment",
        "content_commitment",
        "key_agreement",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ],
    False,
)
SIGNS = x509.KeyUsage(digital_signature=True, key_cert_sign=False, **USAGE)
CERTIFIES = x509.KeyUsage(digital_signature=True, key_cert_sign=True, **USAGE)
LEAF, CA = x509.BasicConstraints(ca=False, path_length=None), x509.BasicConstraints(ca=True, path_length=0)
NAMED = x509.SubjectAlternativeName([x509.DNSName("ann.example.org")])


def usage(*purposes: str) -> x509.ExtendedKeyUsage:
    """Purposes by their object identifiers."""
    return x509.ExtendedKeyUsage([x509.ObjectIdentifier(purpose) for purpose in purposes])


SERVER_AUTH, CLIENT_AUTH, ANY = "1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2", "2.5.29.37.0"
ODD: dict[str, tuple[Identity, str]] = {
    "no name": (issue(AUTHORITY, [ADMIN]), "ambiguous identity: it has 0 common names, not one"),
    "no subject": (issue(AUTHORITY), "ambiguous identity: it has 0 common names, not one"),
    "two names": (issue(AUTHORITY, [ANN], [text(CN, "bob")], [ADMIN]), TWO_NAMES),
    "the same name twice": (issue(AUTHORITY, [ANN], [ADMIN], [ANN]), TWO_NAMES),
    "two names in one part": (issue(AUTHORITY, [ANN, text(CN, "bob")], [ADMIN]), TWO_NAMES),
    "a name beside its role": (issue(AUTHORITY, [ANN, ADMIN]), BESIDE),
    "a role beside its name": (issue(AUTHORITY, [ADMIN, ANN]), BESIDE),
    "no usage": (issue(AUTHORITY, [ANN], [ADMIN], extensions=[]), NO_CLIENT),
    "for servers": (issue(AUTHORITY, [ANN], [ADMIN], extensions=[(usage(SERVER_AUTH), False)]), NO_CLIENT),
    "for anything": (issue(AUTHORITY, [ANN], [ADMIN], extensions=[(usage(ANY), False)]), NO_CLIENT),
    "for servers and anything": (
        issue(AUTHORITY, [ANN], [ADMIN], extensions=[(usage(SERVER_AUTH, ANY), True)]),
        NO_CLIENT,
    ),
    "for e-mail": (issue(AUTHORITY, [ANN], [ADMIN], extensions=[(usage("1.3.6.1.5.5.7.3.4"), False)]), NO_CLIENT),
    "an authority": (
        issue(AUTHORITY, [ANN], [ADMIN], extensions=[(FOR_CLIENTS, False), (CA, True)]),
        "it belongs to a certificate authority",
    ),
    "one that may certify": (
        issue(AUTHORITY, [ANN], [ADMIN], extensions=[(FOR_CLIENTS, False), (CERTIFIES, True)]),
        "it belongs to a certificate authority",
    ),
    "an unknown critical extension": (
        issue(AUTHORITY, [ANN], [ADMIN], extensions=[(FOR_CLIENTS, True), (SOME, True)]),
        UNKNOWN.format("1.3.6.1.4.1.99999.1"),
    ),
    "critical roles": (
        issue(AUTHORITY, [ANN], extensions=[(FOR_CLIENTS, False), (ROLES, True)]),
        UNKNOWN.format("1.2.840.10070.8.1"),
    ),
    "a critical mark": (
        issue(AUTHORITY, [ANN], extensions=[(FOR_CLIENTS, False), (MARK, True)]),
        UNKNOWN.format("1.3.6.1.4.1.12345.1.1"),
    ),
    "usage twice": (with_extension_twice(AUTHORITY, FOR_CLIENTS, last_arc=99), "it has the extension 2.5.29.37 twice"),
    "roles twice": (with_extension_twice(AUTHORITY, ROLES), "it has the extension 1.2.840.10070.8.1 twice"),
    "a mark twice": (with_extension_twice(AUTHORITY, MARK), "it has the extension 1.3.6.1.4.1.12345.1.1 twice"),
    "huge": (
        AUTHORITY.issue(["ann"], ["admin"], extensions=[(x509.ObjectIdentifier("1.2.3.4"), b"x" * 60_000)]),
        "it is too large",
    ),
    "huge by its organizations": (AUTHORITY.issue(["ann"], ["admin", *["x" * 60] * 800]), "it is too large"),
}


@pytest.mark.threat("D05")
@pytest.mark.threat("D06")
@pytest.mark.threat("D07")
@pytest.mark.threat("D10")
@pytest.mark.parametrize("odd", ODD)
def test_the_table_of_odd_certificates(odd: str) -> None:
    """Each is refused for its own reason, although all of them have a role and a signature that is good."""
    identity, expected = ODD[odd]
    assert why(identity) == expected


FINE: dict[str, list[tuple[x509.ExtensionType, bool]]] = {
    "usage alone": [(FOR_CLIENTS, False)],
    "critical usage": [(FOR_CLIENTS, True)],
    "both usages": [(usage(SERVER_AUTH, CLIENT_AUTH), False)],
    "client and anything": [(usage(CLIENT_AUTH, ANY), False)],
    "what openssl writes": [(LEAF, False), (SIGNS, True), (FOR_CLIENTS, False), (NAMED, False)],
    "all that may be critical": [(LEAF, True), (SIGNS, True), (FOR_CLIENTS, True), (NAMED, True)],
    "an unknown one": [(FOR_CLIENTS, False), (SOME, False)],
    "large": [(FOR_CLIENTS, False), (x509.UnrecognizedExtension(SOME.oid, b"x" * 40_000), False)],
}


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
