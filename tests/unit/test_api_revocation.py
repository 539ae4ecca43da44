"""Whom lists and authorities shut out: the answer for every kind of chain, without connections."""

import pytest
from cryptography import x509

from common.errors import Reason
from services.api import revocation
from services.api.material import RevocationList
from services.api.revocation import LEFT, REVOKED, Trust
from tests.certificates import Authority, Identity

ROOT = Authority("root")
BELOW = ROOT.intermediate("below")
OTHER = Authority("other")


def loaded(pem: bytes) -> x509.Certificate:
    """The certificate in it."""
    return x509.load_pem_x509_certificate(pem)


def listed(*pems: bytes) -> RevocationList:
    """A list of these certificates, of the issuer of the first."""
    certificates = [loaded(pem) for pem in pems]
    return RevocationList(certificates[0].issuer, frozenset(one.serial_number for one in certificates), 0)


def why(trust: Trust, presented: bytes) -> str:
    """The reason of a refusal; empty: none."""
    error = trust.refusal(presented)
    if error is None:
        return ""
    assert error.reason is Reason.UNAUTHENTICATED
    return error.message.removeprefix("client certificate refused: ")


@pytest.mark.threat("D32")
def test_a_serial_number_counts_for_its_issuer_alone() -> None:
    """The same number of another authority is another certificate."""
    eve, ann = ROOT.client("eve", "user"), ROOT.client("ann", "user")
    trust = Trust([listed(eve.cert)])
    assert why(trust, eve.cert) == REVOKED
    assert why(trust, ann.cert) == ""
    foreign = RevocationList(loaded(OTHER.pem).subject, listed(eve.cert).serials, 0)
    assert why(Trust([foreign]), eve.cert) == ""
    assert why(Trust([foreign, listed(ann.cert), listed(eve.cert)]), eve.cert) == REVOKED


@pytest.mark.threat("D32")
def test_whoever_is_below_a_revoked_authority_is_revoked() -> None:
    """If it is on the way to his own certificate; one that he merely sent along says nothing of him."""
    eve, ann = BELOW.client("eve", "user"), ROOT.client("ann", "user")
    trust = Trust([listed(BELOW.pem)])
    assert why(trust, eve.cert + BELOW.pem) == REVOKED
    assert why(trust, eve.cert + OTHER.pem + BELOW.pem) == REVOKED
    assert why(trust, ann.cert + BELOW.pem) == ""


@pytest.mark.threat("D31")
def test_chains_are_asked_for_their_authority_only_when_one_has_left() -> None:
    """Directly, or by way of others that were sent along."""
    root, other = loaded(ROOT.pem), loaded(OTHER.pem)
    ann, bob, eve = ROOT.client("ann", "user"), OTHER.client("bob", "user"), BELOW.client("eve", "user")
    assert why(Trust((), [other]), ann.cert) == ""
    only_other = Trust((), [other], authority_left=True)
    assert [why(only_other, each) for each in (ann.cert, bob.cert, eve.cert + BELOW.pem)] == [LEFT, "", LEFT]
    only_root = Trust((), [root], authority_left=True)
    assert [why(only_root, each) for each in (ann.cert, bob.cert, eve.cert + BELOW.pem)] == ["", LEFT, ""]
    assert why(only_root, eve.cert) == LEFT
    only_below = Trust((), [loaded(BELOW.pem)], authority_left=True)
    assert [why(only_below, each) for each in (eve.cert, eve.cert + BELOW.pem, ann.cert)] == ["", "", LEFT]


@pytest.mark.threat("D02")
def test_an_authority_of_the_same_name_is_another_one() -> None:
    """Its key decides."""
    namesake = Authority("root")
    assert why(Trust((), [loaded(namesake.pem)], authority_left=True), ROOT.client("ann", "user").cert) == LEFT


def test_answers_are_remembered_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is parsed; beyond the bound everything is forgotten, and right all the same."""
    clients: list[Identity] = [ROOT.client(f"c{number}", "user") for number in range(5)]
    monkeypatch.setattr(revocation, "REMEMBERED_MAX", 2)
    trust = Trust([listed(clients[0].cert)])
    for _ in range(2):
        assert [why(trust, each.cert) for each in clients] == [REVOKED, "", "", "", ""]
        assert len(trust._known) <= 2


def test_what_is_no_certificate_is_refused_once_anything_is_asked() -> None:
    """It cannot have come through TLS; if it did, it is nobody."""
    assert why(Trust([listed(ROOT.client("eve", "user").cert)]), b"garbage") == "it is malformed"
