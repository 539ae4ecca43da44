"""Certificates with anything in their fields, and bytes that are none: a principal, or a refusal with a reason."""

import base64
import datetime
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import strategies as st

from common.errors import JobletError, Reason
from services.api.identity import NAME, Principal, principal_of, read_certificate, utf8_string
from tests.certificates import ADMIN_MARK, READER_MARK, ROLES_EXTENSION, utf8_der
from tests.security.fuzzing import explore
from tests.security.malformed import DAMAGES, Damage

EXAMPLES: Final = 300
KEY: Final = ec.generate_private_key(ec.SECP256R1())
NOW: Final = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
REFUSALS: Final = {Reason.UNAUTHENTICATED, Reason.DENIED}

VALUES: Final = st.one_of(
    st.sampled_from(
        ("ann", "admin", "reader", "writer", "аnn", "ann\0.evil", "a" * 64, "ann ", " ", "ADMIN", "admin\n", "a,b")
    ),
    st.text(min_size=1, max_size=64),
)
_GOOD_NAME: Final = [
    (NameOID.COMMON_NAME, "ann", _ASN1Type.UTF8String),
    (NameOID.ORGANIZATION_NAME, "admin", _ASN1Type.UTF8String),
]
NAMES: Final = st.just(_GOOD_NAME) | st.lists(
    st.tuples(
        st.sampled_from(
            (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.SERIAL_NUMBER, NameOID.DOMAIN_COMPONENT)
        ),
        VALUES,
        st.sampled_from((_ASN1Type.UTF8String, _ASN1Type.PrintableString, _ASN1Type.IA5String, _ASN1Type.BMPString)),
    ),
    max_size=5,
)
DER: Final = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(("admin", "reader,writer", "root", "", "admin\0")).map(utf8_der),
    st.sampled_from(
        (b"\x0c\x80", b"\x0c\x84\xff\xff\xff\xff", b"\x0c\x81\x05admin", b"\x0c\x05admi\xff", b"\x13\x05admin")
    ),
)
EXTENSIONS: Final = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from((ROLES_EXTENSION, ADMIN_MARK, READER_MARK, x509.ObjectIdentifier("2.5.29.37"))), DER
        ).map(lambda drawn: x509.UnrecognizedExtension(*drawn)),
        st.lists(
            st.sampled_from((ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)), min_size=1, max_size=2
        ).map(x509.ExtendedKeyUsage),
        st.booleans().map(lambda ca: x509.BasicConstraints(ca=ca, path_length=None)),
        st.sampled_from(("admin", "xn--admin", "a" * 60)).map(
            lambda name: x509.SubjectAlternativeName([x509.DNSName(name)])
        ),
    ),
    max_size=5,
)
TIMES: Final = st.datetimes(
    min_value=datetime.datetime(1951, 1, 1),  # noqa: DTZ001  # hypothesis adds the zone  # before, X.509 has no form
    max_value=datetime.datetime(9999, 12, 31),  # noqa: DTZ001
    timezones=st.just(datetime.UTC),
)


def certificate(name: list[Any], extensions: list[Any], times: tuple[Any, Any], serial: int) -> bytes | None:
    """PEM; None where the library refuses to make it."""
    first, last = sorted(times)
    try:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(oid, value, kind) for oid, value, kind in name]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(KEY.public_key())
            .serial_number(serial)
            .not_valid_before(first)
            .not_valid_after(last)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    except (ValueError, TypeError, UnicodeEncodeError):
        return None


def judged(pem: bytes) -> Principal | Reason:
    """What becomes of a certificate; anything but a principal and a JobletError passes."""
    read_certificate.cache_clear()
    try:
        return principal_of(pem, now_s=NOW.timestamp())
    except JobletError as error:
        return error.reason


@pytest.mark.threat("D10")
@pytest.mark.threat("D05")
@pytest.mark.threat("D07")
def test_any_fields_give_a_principal_or_a_refusal() -> None:
    """Who gets through has one name of the alphabet, roles that were signed, and a certificate for clients."""
    outcomes: set[object] = set()

    def check(drawn: tuple[list[Any], list[Any], tuple[Any, Any], int]) -> None:
        pem = certificate(*drawn)
        if pem is None:
            return
        found = judged(pem)
        outcomes.add(type(found))
        if isinstance(found, Reason):
            assert found in REFUSALS
            return
        names, extensions, times, _ = drawn
        assert [value for oid, value, _ in names if oid == NameOID.COMMON_NAME] == [found.name]
        assert NAME.fullmatch(found.name)
        assert found.roles
        assert min(times) <= NOW < max(times)
        assert any(
            isinstance(one, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.CLIENT_AUTH in one for one in extensions
        )
        assert not any(isinstance(one, x509.BasicConstraints) and one.ca for one in extensions)

    likely = st.just((NOW - datetime.timedelta(days=1), NOW + datetime.timedelta(days=1)))
    times = st.one_of(likely, likely, st.tuples(TIMES, TIMES))
    serials = st.one_of(st.integers(1, 2**159), st.sampled_from((1, 2**64, 2**158)))
    explore(st.tuples(NAMES, EXTENSIONS, times, serials), check, examples=EXAMPLES, share=0.04)
    assert outcomes == {Principal, Reason}  # else nothing was shown


@pytest.mark.threat("D10")
def test_any_bytes_give_a_principal_or_a_refusal() -> None:
    """A good certificate with some of its bytes replaced or cut off, also inside of the DER."""
    extensions = [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])]
    pem = certificate(_GOOD_NAME, extensions, (NOW - datetime.timedelta(days=1), NOW + datetime.timedelta(days=1)), 7)
    assert pem is not None
    assert isinstance(judged(pem), Principal)
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)

    def check(drawn: tuple[Damage, bool]) -> None:
        damage, inside = drawn
        found = judged(as_pem(damage.of(der)) if inside else damage.of(pem))
        assert isinstance(found, Principal) or found in REFUSALS

    explore(st.tuples(DAMAGES, st.booleans()), check, examples=EXAMPLES, share=0.04)


def as_pem(der: bytes) -> bytes:
    """RFC 7468."""
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


@pytest.mark.threat("D10")
def test_any_der_is_a_text_or_refused() -> None:
    """The extension with roles in words: bytes are exactly one UTF8String, or ValueError."""

    def check(der: bytes) -> None:
        try:
            text = utf8_string(der)
        except ValueError:
            return
        assert der.endswith(text.encode())
        assert der[0] == 0x0C

    explore(DER, check, examples=EXAMPLES, share=0.02)
