"""When certificates end, and which of them do so soon. Pure: PEM bytes and a clock reading in.

Here: the one rule of what "soon" means, for the services' log and metrics, `joblet doctor` and the clients. Not here:
where certificates lie (`tls.py`), and how a warning is told. Validity: RFC 5280, section 4.1.2.5.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple

from cryptography import x509

from common.errors import invalid

WARNING_DAYS: Final = 14
"""Of those who have no configuration of a node, such as rnx; the services' own: `security.expiry_warning_days`."""

_SECOND_NS: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * _SECOND_NS


class Expiry(NamedTuple):
    """When a certificate ends.

    `name` tells whose it is, such as "server"; `subject` is the certificate's, as RFC 4514 writes it; `not_after_ns`
    is its end (Unix nanoseconds); `soon`: it has ended, or does within the days of warning.
    """

    name: str
    subject: str
    not_after_ns: int
    soon: bool


def expiries(certificates: Mapping[str, bytes], *, now_ns: int, warning_days: int) -> tuple[Expiry, ...]:
    """The end of each certificate, in order; PEM by name. A bundle gives one of that name for each certificate in it.

    Raises JobletError(INVALID) that names what cannot be read.
    """
    return tuple(
        Expiry(
            name=name,
            subject=certificate.subject.rfc4514_string(),
            not_after_ns=(not_after_ns := nanoseconds(certificate.not_valid_after_utc)),
            soon=is_soon(not_after_ns, now_ns=now_ns, warning_days=warning_days),
        )
        for name, pem in certificates.items()
        for certificate in _certificates(name, pem)
    )


def is_soon(not_after_ns: int, *, now_ns: int, warning_days: int) -> bool:
    """Whether what ends at `not_after_ns` is to be warned about; also when it is over."""
    return not_after_ns - now_ns <= warning_days * _DAY_NS


def days_left(not_after_ns: int, *, now_ns: int) -> int:
    """Whole days until the end; negative when it is over."""
    return (not_after_ns - now_ns) // _DAY_NS


def nanoseconds(moment: datetime) -> int:
    """Unix nanoseconds of a certificate's time, which has whole seconds."""
    return int(moment.timestamp()) * _SECOND_NS


def _certificates(name: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as cause:
        raise invalid(f"the certificate {name} cannot be read: {cause}", "expected PEM blocks CERTIFICATE") from cause
