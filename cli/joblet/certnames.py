"""Names of servers as certificates have them: DNS names and IP addresses (RFC 5280, section 4.2.1.6).

Here: which of them are well-formed. Not here: names of users (`certificates.py`).
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from cryptography import x509

from common.errors import JobletError, invalid

SERVER_NAMES_MAX: Final = 100

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_DNS_CHARACTERS_MAX: Final = 253


def alternatives_of(names: Iterable[str]) -> x509.SubjectAlternativeName:
    """DNS names and IP addresses, each once, as a server certificate has them. Raises JobletError(INVALID)."""
    found = dict.fromkeys(_alternative(name) for name in names)
    if not 0 < len(found) <= SERVER_NAMES_MAX:
        raise invalid(f"{len(found)} names for a server", f"use 1 to {SERVER_NAMES_MAX}")
    return x509.SubjectAlternativeName(found)


def usable_names(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that a certificate can hold: a host may be called anything."""
    return tuple(name for name in names if _is_name(name))


def _is_name(name: str) -> bool:
    try:
        _alternative(name)
    except JobletError:
        return False
    return True


def _alternative(name: str) -> x509.GeneralName:
    try:
        if "%" not in name:  # an interface belongs to one host's view of an address, not to the address
            return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        last = name.rpartition(".")[2]
        if len(name) <= _DNS_CHARACTERS_MAX and _DNS_NAME.fullmatch(name) and not last.isdigit():
            return x509.DNSName(name.lower())
    raise invalid(f"malformed server name {name[:80]!r}", "give a DNS name in ASCII letters, or an IP address")
