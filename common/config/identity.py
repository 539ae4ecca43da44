"""Which certificates mean which roles: the section `security.identity`, checked.

Here: what may stand in it. Roles are plain words here. Not here: reading certificates (`services/api/identity.py`).
Object identifiers: X.660, in the notation of RFC 4512, 1.4; certificate extensions: RFC 5280, 4.2.
"""

import re
from typing import Final

from common.config.settings import Identity
from common.errors import JobletError, invalid

ROLES: Final = ("admin", "writer", "user", "reader")
ROLES_EXTENSION: Final = "1.2.840.10070.8.1"
WORDS_MAX: Final = 256
MARKS_MAX: Final = 64
WORD_CHARACTERS_MAX: Final = 64
"""Of a word: ub-organization-name of RFC 5280. Of an object identifier: that is more than any in use has."""

STANDARD_ARCS: Final = ("2.5.29", "1.3.6.1.5.5.7.1", "2.16.840.1.113730.1")
"""id-ce, id-pe and Netscape's: extensions that ordinary certificates have, so that their presence tells nothing."""

_KEY: Final = "security.identity"
_OID = re.compile(r"[0-2](\.(0|[1-9]\d{0,18}))+", re.ASCII)
_WORD = re.compile(r"[!-+\--~]([ -+\--~]*[!-+\--~])?", re.ASCII)  # ASCII that prints, no comma, no space at the ends


def check_identity(identity: Identity) -> None:
    """Refuse what could never match, would match everybody, or says two things. Raises INVALID with the key."""
    if not (identity.organization or identity.extension or identity.marks):
        raise invalid(
            f"{_KEY}: organization, extension and marks are all off", "expected: one of them, or nobody can call"
        )
    if len(identity.marks) > MARKS_MAX:
        raise invalid(f"{_KEY}.marks has {len(identity.marks)} entries", f"expected: at most {MARKS_MAX}")
    for oid, role in identity.marks.items():
        _check_role(role, f"{_KEY}.marks.{oid[:80]}")
        _check_mark(oid)
    if len(identity.roles) > WORDS_MAX:
        raise invalid(f"{_KEY}.roles has {len(identity.roles)} entries", f"expected: at most {WORDS_MAX}")
    seen = {role: (role, role) for role in ROLES}
    for word, role in identity.roles.items():
        _check_role(role, f"{_KEY}.roles.{word[:80]}")
        _check_word(word)
        known, meaning = seen.setdefault(word.casefold(), (word, role))
        if meaning != role:
            raise _ambiguous(word, role, known, meaning)


def _check_role(role: str, key: str) -> None:
    if role not in ROLES:
        raise invalid(f"{key} is {role[:80]!r}", f"expected: a role, which is {', '.join(ROLES[:-1])} or {ROLES[-1]}")


def _check_mark(oid: str) -> None:
    key = f"{_KEY}.marks.{oid[:80]}"
    arcs = oid.split(".")
    if len(oid) > WORD_CHARACTERS_MAX or not _OID.fullmatch(oid) or (arcs[0] != "2" and int(arcs[1]) > 39):
        raise invalid(f"{key}: malformed object identifier", "expected: such as 1.3.6.1.4.1.12345.1.1")
    if oid == ROLES_EXTENSION:
        raise invalid(f"{key}: this extension names roles itself", f"it is switched by {_KEY}.extension")
    if any(oid.startswith(f"{arc}.") for arc in STANDARD_ARCS):
        raise invalid(
            f"{key}: this extension stands in ordinary certificates", "expected: one of your own, below 1.3.6.1.4.1"
        )


def _check_word(word: str) -> None:
    if len(word) > WORD_CHARACTERS_MAX or not _WORD.fullmatch(word):
        raise invalid(
            f"{_KEY}.roles.{word[:80]!r}: malformed word",
            f"expected: 1 to {WORD_CHARACTERS_MAX} ASCII characters that print, no comma, no space at either end",
        )


def _ambiguous(word: str, role: str, known: str, meaning: str) -> JobletError:
    """Words are compared exactly; but who reads a certificate does not, and must not be led astray."""
    what = f"a role's own name means {known!r}" if known in ROLES else f"{known!r} means {meaning!r}"
    return invalid(f"{_KEY}.roles.{word} is {role!r}, but {what}", "expected: a word of its own for each meaning")
