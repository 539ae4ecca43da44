"""Which certificates, keys, authorities and lists are taken, and which are not: the rules, without files."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from common.errors import JobletError
from common.tls import ServerMaterial, ServerSources
from services.api.looks import Look, Reading
from services.api.material import Material, Part, checked, judged
from tests.certificates import DAY, Authority, Identity

AUTHORITY = Authority()
STRANGER = Authority("somebody else")
SAME_NAME = Authority()
PAIR = AUTHORITY.server()
SOURCES = ServerSources("server.crt", "server.key", "ca.crt", "ca.crl", crl_required=False)
MISSING = Reading(b"", error=2)


def material(*, crl: bytes = b"", pair: Identity = PAIR) -> Material:
    """What is in force before a look."""
    return checked(ServerMaterial(pair.cert, pair.key, AUTHORITY.pem, crl))


def seen(
    *,
    cert: Reading | bytes = PAIR.cert,
    key: Reading | bytes = PAIR.key,
    ca: Reading | bytes = AUTHORITY.pem,
    crl: Reading | bytes = MISSING,
) -> Look:
    """A look: bytes are a file of mode 0600."""
    return Look(*(each if isinstance(each, Reading) else Reading(each, 0o600) for each in (cert, key, ca, crl)))


def refused(look: Look, part: Part, words: str, before: Material | None = None) -> None:
    """Assert that this part of the look is not taken, for this reason, and that all stays as it was."""
    before = before or material()
    now, problems = judged(look, before, SOURCES)
    assert now == before
    assert [problem.part for problem in problems] == [part]
    assert words in str(problems[0].error)
    assert problems[0].error.detail


def test_nothing_changes_when_nothing_changed() -> None:
    """The first look of every keeper: the same files."""
    assert judged(seen(), material(), SOURCES) == (material(), ())
    assert judged(Look(None, None, None, None), material(), SOURCES) == (material(), ())


@pytest.mark.threat("D31")
def test_a_pair_is_taken_when_it_is_one() -> None:
    """Both new, of another kind of key even; each alone is no pair."""
    fresh = rsa_pair()
    now, problems = judged(seen(cert=fresh.cert, key=fresh.key), material(), SOURCES)
    assert (now.pem.cert, now.pem.key, problems) == (fresh.cert, fresh.key, ())
    for half in (seen(cert=fresh.cert), seen(key=fresh.key)):
        refused(half, Part.PAIR, "does not belong")


@pytest.mark.threat("D31")
@pytest.mark.parametrize(
    ("look", "words"),
    [
        (seen(cert=PAIR.cert[:-50]), "cannot be read"),
        (seen(cert=PAIR.cert + AUTHORITY.pem[:100]), "cannot be read"),
        (seen(cert=b""), "no PEM block"),
        (seen(cert=b"x" * (1024 * 1024 + 1)), "larger than"),
        (seen(cert=MISSING), "No such file"),
        (seen(key=PAIR.key[:-50]), "cannot be read"),
        (seen(key=PAIR.cert), "cannot be read"),
        (seen(key=Reading(PAIR.key, 0o640)), "others can read it"),
        (seen(key=Reading(PAIR.key, 0o604)), "others can read it"),
        (seen(key=Reading(b"", error=13)), "Permission denied"),
    ],
)
def test_a_pair_that_is_no_good_is_not_taken(look: Look, words: str) -> None:
    """Torn, empty, too large, gone, open to others."""
    refused(look, Part.PAIR, words)


def test_a_damaged_key_is_found_by_what_it_signs() -> None:
    """The public half is whole, so that only a signature shows it."""
    whole = rsa_key()
    numbers = whole.private_numbers()
    damaged = rsa.RSAPrivateNumbers(
        p=numbers.p,
        q=numbers.q,
        d=numbers.d ^ 2,
        dmp1=numbers.dmp1 ^ 2,
        dmq1=numbers.dmq1,
        iqmp=numbers.iqmp,
        public_numbers=numbers.public_numbers,
    ).private_key(unsafe_skip_rsa_key_validation=True)
    pair = rsa_pair(whole)
    refused(seen(cert=pair.cert, key=pem_of(damaged)), Part.PAIR, "the server key")


@pytest.mark.threat("D31")
def test_authorities_are_taken_all_or_none() -> None:
    """A second one is added, the first one leaves; a block that is not whole is no bundle."""
    both = AUTHORITY.pem + STRANGER.pem
    now, problems = judged(seen(ca=both), material(), SOURCES)
    assert (len(now.authorities), now.pem.ca, problems) == (2, both, ())
    assert len(judged(seen(ca=STRANGER.pem), now, SOURCES)[0].authorities) == 1
    refused(seen(ca=both[:-100]), Part.AUTHORITIES, "cannot be read")
    refused(seen(ca=both + b"-----BEGIN CERTIFICATE-----\n"), Part.AUTHORITIES, "cannot be read")
    refused(seen(ca=MISSING), Part.AUTHORITIES, "No such file")


@pytest.mark.threat("D32")
def test_a_list_is_taken_when_one_of_the_authorities_signed_it() -> None:
    """Its serial numbers count for its issuer; several lists may stand in one file; an overdue one counts, too."""
    bad = AUTHORITY.client("eve", "admin")
    serial = x509.load_pem_x509_certificate(bad.cert).serial_number
    now, problems = judged(seen(crl=AUTHORITY.crl(bad, next_update=-DAY / 2)), material(), SOURCES)
    assert problems == ()
    assert [one.serials for one in now.lists] == [{serial}]
    assert now.lists[0].issuer.rfc4514_string() == "CN=test authority"
    both = seen(ca=AUTHORITY.pem + STRANGER.pem, crl=AUTHORITY.crl(bad) + STRANGER.crl())
    assert len(judged(both, material(), SOURCES)[0].lists) == 2


@pytest.mark.threat("D32")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (SAME_NAME.crl(), "not signed by the CA certificate of that name"),
        (AUTHORITY.crl() + SAME_NAME.crl(), "not signed by the CA certificate of that name"),
        (AUTHORITY.crl()[:-30], "not whole"),
        (AUTHORITY.crl() + AUTHORITY.crl()[:100], "not whole"),
        (AUTHORITY.crl().replace(b"M", b"A", 1), "cannot be read"),
        (AUTHORITY.pem, "not whole"),
        (b"hello", "no PEM block"),
        (b"", "it is empty"),
    ],
)
def test_a_list_that_is_no_good_is_not_taken(content: bytes, words: str) -> None:
    """A forged one, half of one, none at all: what was revoked stays so."""
    before = material(crl=AUTHORITY.crl(AUTHORITY.client("eve", "admin")))
    refused(seen(crl=content), Part.LISTS, words, before)


@pytest.mark.threat("D32")
def test_each_authority_has_its_own_list_in_one_file() -> None:
    """One of nobody trusted is told, counts for nobody and hinders no other, until its authority is trusted."""
    mine, theirs = AUTHORITY.crl(AUTHORITY.client("eve", "admin")), STRANGER.crl(STRANGER.client("mallory", "admin"))
    now, problems = judged(seen(crl=theirs + mine), material(), SOURCES)
    assert problems == ()
    assert [one.issuer.rfc4514_string() for one in now.lists] == ["CN=test authority"]
    assert ["CN=somebody else" in remark for remark in now.remarks] == [True]
    now, problems = judged(seen(ca=AUTHORITY.pem + STRANGER.pem, crl=theirs + mine), now, SOURCES)
    assert (len(now.lists), now.remarks, problems) == (2, (), ())
    # Its list leaves the file while it is trusted: it counts on. Then it leaves itself, and its list with it.
    now, problems = judged(seen(ca=AUTHORITY.pem + STRANGER.pem, crl=mine), now, SOURCES)
    assert [len(one.serials) for one in now.lists] == [1, 1]
    assert ["CN=somebody else" in remark and "is gone" in remark for remark in now.remarks] == [True]
    now, problems = judged(seen(crl=mine), now, SOURCES)
    assert ([len(one.serials) for one in now.lists], now.remarks, problems) == ([1], (), ())
    assert checked(now.pem._replace(crl=theirs)).remarks


@pytest.mark.threat("D32")
def test_of_two_authorities_of_one_name_the_key_identifiers_tell_whose_a_list_is() -> None:
    """As after a change of authorities under the old name, when the old one's list still lies there."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "one name")])
    old, new = (_named(name, rsa_key()) for _ in range(2))
    both = old[1] + new[1]
    now = checked(ServerMaterial(PAIR.cert, PAIR.key, new[0], both))
    assert [one.serials for one in now.lists] == [{2}] * len(now.lists)
    assert (len(now.lists), len(now.remarks)) == (1, 1)
    assert len(checked(ServerMaterial(PAIR.cert, PAIR.key, old[0] + new[0], both)).lists) == 2


def _named(name: x509.Name, key: rsa.RSAPrivateKey) -> tuple[bytes, bytes]:
    """An authority's certificate and a list that revokes number 2, both with key identifiers."""
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    entry = x509.RevokedCertificateBuilder().serial_number(2).revocation_date(now - DAY).build()
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name)
        .last_update(now - DAY)
        .next_update(now + DAY)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_revoked_certificate(entry)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return certificate.public_bytes(pem), crl.public_bytes(pem)


@pytest.mark.threat("D32")
def test_a_list_that_is_gone_revokes_on() -> None:
    """Unless there never was one: then its absence is what is usual."""
    refused(seen(crl=MISSING), Part.LISTS, "No such file", material(crl=AUTHORITY.crl()))
    assert judged(seen(crl=MISSING), material(), SOURCES) == (material(), ())
    _, problems = judged(seen(crl=MISSING), material(), SOURCES._replace(crl_required=True))
    assert [problem.part for problem in problems] == [Part.LISTS]


@pytest.mark.threat("D32")
def test_a_list_that_tells_only_a_part_is_not_taken() -> None:
    """A delta, or one of other issuers: whoever took it for all would let the others in again."""
    delta = x509.DeltaCRLIndicator(1)
    indirect = x509.IssuingDistributionPoint(
        full_name=None,
        relative_name=None,
        only_contains_user_certs=False,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=True,
        only_contains_attribute_certs=False,
    )
    for extension in (delta, indirect):
        now = datetime.datetime.now(datetime.UTC)
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(AUTHORITY._name)
            .last_update(now - DAY)
            .next_update(now + DAY)
            .add_extension(extension, critical=True)
            .sign(AUTHORITY._key, hashes.SHA256())
        )
        refused(seen(crl=crl.public_bytes(serialization.Encoding.PEM)), Part.LISTS, "cannot be read")


@pytest.mark.threat("D32")
def test_one_part_that_is_wrong_keeps_no_other_from_its_change() -> None:
    """A pair that does not fit must not hinder a revocation."""
    crl = AUTHORITY.crl(AUTHORITY.client("eve", "admin"))
    now, problems = judged(seen(key=STRANGER.server().key, crl=crl), material(), SOURCES)
    assert [problem.part for problem in problems] == [Part.PAIR]
    assert now.pem == material().pem._replace(crl=crl)
    assert len(now.lists[0].serials) == 1


@pytest.mark.threat("D31")
def test_a_service_does_not_begin_with_what_it_would_not_take() -> None:
    """The same rules at the start, as errors."""
    good = material().pem
    for wrong in (
        good._replace(key=STRANGER.server().key),
        good._replace(ca=b"-----BEGIN CERTIFICATE-----"),
        good._replace(crl=SAME_NAME.crl()),
        good._replace(cert=b"-----BEGIN"),
    ):
        with pytest.raises(JobletError):
            checked(wrong)


def rsa_key() -> rsa.RSAPrivateKey:
    """A short one: length is not what is tested."""
    return rsa.generate_private_key(65_537, 2048)


def pem_of(key: rsa.RSAPrivateKey) -> bytes:
    """PKCS #8, without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def rsa_pair(key: rsa.RSAPrivateKey | None = None) -> Identity:
    """A certificate for an RSA key, signed by itself: who signed it is no matter here."""
    key = key or rsa_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .sign(key, hashes.SHA256())
    )
    return Identity(certificate.public_bytes(serialization.Encoding.PEM), pem_of(key))
