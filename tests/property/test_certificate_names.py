"""Properties of names in certificates: what is accepted is written as it is and read back; all else is refused."""

import string
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from cli.joblet.certificates import Issued, make_client
from cli.joblet.certnames import alternatives_of, usable_names
from cli.joblet.certroles import ROLES, Scheme, role_parts
from cli.joblet.revocations import parse_serial
from common.errors import JobletError
from services.api.identity import DEFAULT_SCHEMES, EXTRACTORS, NAME

NOW = datetime(2026, 1, 1, tzinfo=UTC)
labels = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=63).filter(
    lambda label: label[0] != "-" and label[-1] != "-"
)
hosts = st.lists(labels, min_size=1, max_size=4).map(".".join).filter(lambda name: not name.split(".")[-1].isdigit())


@cache
def key() -> ec.EllipticCurvePrivateKey:
    """One for all: what is tested is names."""
    return ec.generate_private_key(ec.SECP256R1())


@given(st.text(max_size=70) | st.from_regex(NAME.pattern, fullmatch=True))
def test_a_user_name_is_accepted_where_the_node_accepts_it(cn: str) -> None:
    """Both say the same of any text. An accepted one gets as far as the CA, which is none here."""
    with pytest.raises(JobletError) as caught:
        make_client(Issued(b"", b""), cn=cn, roles=("user",), now=NOW)
    assert ("malformed user name" in caught.value.message) is not bool(NAME.fullmatch(cn))


@given(st.lists(hosts | st.ip_addresses().map(str), min_size=1, max_size=5))
def test_a_server_name_is_written_as_it_is(names: list[str]) -> None:
    """DNS names in small letters, addresses as addresses, each once, in order; a certificate can hold them."""
    value = alternatives_of(names)
    assert [str(each.value) for each in value] == list(dict.fromkeys(name.lower() for name in names))
    assert usable_names(names) == tuple(names)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key().public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(value, critical=False)
        .sign(key(), hashes.SHA256())
    )
    read = x509.load_der_x509_certificate(certificate.public_bytes(serialization.Encoding.DER))
    assert read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == value


@given(st.text(max_size=300))
def test_any_other_server_name_is_refused(name: str) -> None:
    """With the one error that says so, or it is one that can be written in ASCII."""
    if not usable_names([name]):
        with pytest.raises(JobletError, match="malformed server name"):
            alternatives_of([name])
        return
    (found,) = alternatives_of([name])
    assert name.isascii()
    assert not set(name) & set(" \0\n/@,")
    assert isinstance(found, x509.DNSName | x509.IPAddress)


@given(st.lists(st.sampled_from(ROLES), min_size=1, max_size=6), st.sampled_from(Scheme))
def test_roles_are_found_where_they_were_put(roles: list[str], scheme: Scheme) -> None:
    """By the node's own reader, in that place and in no other; a mark exists for two of them."""
    if scheme is Scheme.MARK and not set(roles) <= {"admin", "reader"}:
        roles = ["admin"]
    parts = role_parts(tuple(roles), scheme)
    subject = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, each) for each in parts.organizations]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(x509.Name([]))
        .public_key(key().public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    for each in parts.extensions:
        builder = builder.add_extension(each, critical=False)
    certificate = builder.sign(key(), hashes.SHA256())
    found = {place: {role.value for role in read(certificate, DEFAULT_SCHEMES)} for place, read in EXTRACTORS.items()}
    assert {place for place, some in found.items() if some} == {"marks" if scheme is Scheme.MARK else scheme.value}
    assert set().union(*found.values()) == set(roles)


@given(st.text(max_size=60) | st.text(string.hexdigits + ":x", max_size=60))
def test_a_serial_is_a_number_or_refused(text: str) -> None:
    """Never anything else, and what is printed is read back."""
    try:
        serial = parse_serial(text)
    except JobletError:
        return
    assert 0 < serial < 2**160
    assert parse_serial(f"{serial:x}") == serial
