"""Which client certificates are refused although TLS took them: revoked ones, and those of authorities that have left.

TLS verifies a certificate once, when a connection begins, and grpcio has no argument for revocation lists. A connection
lives for an hour. So the gate asks here for every call, and for all running ones when the material changes.

Here: that answer, pure, remembered per certificate. Not here: reading lists (`material.py`), cutting calls (`gate.py`).
"""

from collections.abc import Iterable, Mapping
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from common.errors import JobletError, Reason
from services.api.material import RevocationList

REMEMBERED_MAX: Final = 4096
CHAIN_MAX: Final = 8
"""Certificates from a client's to that of its authority."""

REVOKED: Final = "it was revoked"
LEFT: Final = "its authority is not trusted any more"


class Trust:
    """What lists and authorities say about clients at one time. `authority_left`: one that was trusted since the start.

    Only then chains are walked: before that, every connection there is was verified by TLS with these very authorities.
    """

    def __init__(
        self,
        lists: Iterable[RevocationList] = (),
        authorities: Iterable[x509.Certificate] = (),
        *,
        authority_left: bool = False,
    ) -> None:
        self._revoked: dict[x509.Name, frozenset[int]] = {}
        for one in lists:
            self._revoked[one.issuer] = self._revoked.get(one.issuer, frozenset()) | one.serials
        self._authorities = frozenset(authorities)
        self._authority_left = authority_left
        self._known: dict[bytes, str] = {}

    @property
    def revoked(self) -> Mapping[x509.Name, frozenset[int]]:
        """Serial numbers by issuer."""
        return self._revoked

    def refusal(self, presented: bytes) -> JobletError | None:
        """Why a client is refused that presented this chain (PEM, its own certificate first); None: it is not."""
        if not self._revoked and not self._authority_left:
            return None
        why = self._known.get(presented)
        if why is None:
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            why = self._known[presented] = self._why(presented)
        if not why:
            return None
        return JobletError(
            Reason.UNAUTHENTICATED,
            f"client certificate refused: {why}",
            detail="ask your operator for a new certificate",
        )

    def _why(self, presented: bytes) -> str:
        try:
            chain = x509.load_pem_x509_certificates(presented)[:CHAIN_MAX]
        except ValueError:
            return "it is malformed"
        # What a client sends along and is not its issuer is no reason to refuse it, nor to take it.
        path = _path(chain)
        if any(one.serial_number in self._revoked.get(one.issuer, ()) for one in path):
            return REVOKED
        if self._authority_left and not self._anchored(path):
            return LEFT
        return ""

    def _anchored(self, path: list[x509.Certificate]) -> bool:
        return any(
            one in self._authorities or any(_issued(authority, one) for authority in self._authorities) for one in path
        )


def _path(chain: list[x509.Certificate]) -> list[x509.Certificate]:
    """A client's certificate, its issuer among those that it sent along, that one's issuer, and so on."""
    path, others = chain[:1], chain[1:]
    while others:
        issuer = next((one for one in others if _issued(one, path[-1])), None)
        if issuer is None:
            break
        others.remove(issuer)
        path.append(issuer)
    return path


def _issued(issuer: x509.Certificate, subject: x509.Certificate) -> bool:
    try:
        subject.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
