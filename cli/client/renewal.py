"""The end of the client's own certificate: when to speak of it, and what to do.

Here: the sentences, as values. Not here: finding the certificate (`contexts.py`), and what the node says of it.
"""

from cryptography import x509
from cryptography.x509.oid import NameOID

from common.errors import JobletError
from common.expiry import WARNING_DAYS, Expiry, days_left, expiries


def ending(certificate: bytes, name: str, *, now_ns: int) -> str:
    """A warning when the certificate of a client ends within two weeks; empty otherwise, or when it has ended.

    When it has, the node refuses it, and the error of that says so: nothing is said twice. `certificate` is PEM, the
    client's own first; one that cannot be read is left to TLS, which tells why.
    """
    try:
        (own, *_) = expiries({name: certificate}, now_ns=now_ns, warning_days=WARNING_DAYS)
    except JobletError:
        return ""
    left = days_left(own.not_after_ns, now_ns=now_ns)
    if not own.soon or left < 0:
        return ""
    when = "today" if left == 0 else "in 1 day" if left == 1 else f"in {left} days"
    return f"the certificate {_named(own, certificate)} ends {when}: {advice(name, certificate)}"


def has_ended(certificate: bytes, *, now_ns: int) -> bool:
    """Whether the client's own certificate has ended; one that cannot be read has not."""
    try:
        (own, *_) = expiries({"": certificate}, now_ns=now_ns, warning_days=0)
    except JobletError:
        return False
    return own.soon


def advice(name: str, certificate: bytes) -> str:
    """How to get a new one. `name` is that of its file without ending; empty: the user's name stands for it."""
    return f"renew it where its CA is: joblet certs renew {name or _user(certificate) or 'NAME'}"


def _named(own: Expiry, certificate: bytes) -> str:
    return own.name or _user(certificate) or own.subject


def _user(certificate: bytes) -> str:
    names = x509.load_pem_x509_certificates(certificate)[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
