"""The table of odd client certificates: what is wrong with each, and in whose words it is refused.

Belongs here: the rows, which are tried on the function that reads certificates (tests/unit/test_api_identity.py) and
over real handshakes (tests/security/test_api_certificates.py). Does not belong here: how such certificates are made
(`odd_certificates.py`). All of them have a good signature, a role, and their time.
"""

from typing import Final

from cryptography import x509

from tests.certificates import ADMIN_MARK, ROLES_EXTENSION, Authority, Identity, utf8_der
from tests.odd_certificates import CN, FOR_CLIENTS, TEXTS, Encoding, O, issue, text, with_extension_twice

AMBIGUOUS: Final = "ambiguous identity: its common name "
CHARACTERS: Final = AMBIGUOUS + "may have 1 to 64 of A-Z a-z 0-9 . _ @ - only, and begins with one of A-Z a-z 0-9"
BAD_NAMES: Final = {
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


ANN, ADMIN = text(CN, "ann"), text(O, "admin")
PLAIN: Final = (Encoding.UTF8String, Encoding.PrintableString)
OTHER_TYPE: Final = AMBIGUOUS + "is neither a UTF8String nor a PrintableString"
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
FINE: Final[dict[str, list[tuple[x509.ExtensionType, bool]]]] = {
    "usage alone": [(FOR_CLIENTS, False)],
    "critical usage": [(FOR_CLIENTS, True)],
    "both usages": [(usage(SERVER_AUTH, CLIENT_AUTH), False)],
    "client and anything": [(usage(CLIENT_AUTH, ANY), False)],
    "what openssl writes": [(LEAF, False), (SIGNS, True), (FOR_CLIENTS, False), (NAMED, False)],
    "all that may be critical": [(LEAF, True), (SIGNS, True), (FOR_CLIENTS, True), (NAMED, True)],
    "an unknown one": [(FOR_CLIENTS, False), (SOME, False)],
    "large": [(FOR_CLIENTS, False), (x509.UnrecognizedExtension(SOME.oid, b"x" * 7_000), False)],
}
"""What differs from the odd ones in one point, and is accepted."""


def odd_callers(authority: Authority) -> dict[str, tuple[Identity, str]]:
    """Each with the reason that the api refuses it for, where TLS does not do so before."""
    rows = {
        "no name": (issue(authority, [ADMIN]), "ambiguous identity: it has 0 common names, not one"),
        "no subject": (issue(authority), "ambiguous identity: it has 0 common names, not one"),
        "two names": (issue(authority, [ANN], [text(CN, "bob")], [ADMIN]), TWO_NAMES),
        "the same name twice": (issue(authority, [ANN], [ADMIN], [ANN]), TWO_NAMES),
        "two names in one part": (issue(authority, [ANN, text(CN, "bob")], [ADMIN]), TWO_NAMES),
        "a name beside its role": (issue(authority, [ANN, ADMIN]), BESIDE),
        "a role beside its name": (issue(authority, [ADMIN, ANN]), BESIDE),
        "no usage": (issue(authority, [ANN], [ADMIN], extensions=[]), NO_CLIENT),
        "for servers": (issue(authority, [ANN], [ADMIN], extensions=[(usage(SERVER_AUTH), False)]), NO_CLIENT),
        "for anything": (issue(authority, [ANN], [ADMIN], extensions=[(usage(ANY), False)]), NO_CLIENT),
        "for servers and anything": (
            issue(authority, [ANN], [ADMIN], extensions=[(usage(SERVER_AUTH, ANY), True)]),
            NO_CLIENT,
        ),
        "for e-mail": (issue(authority, [ANN], [ADMIN], extensions=[(usage("1.3.6.1.5.5.7.3.4"), False)]), NO_CLIENT),
        "an authority": (
            issue(authority, [ANN], [ADMIN], extensions=[(FOR_CLIENTS, False), (CA, True)]),
            "it belongs to a certificate authority",
        ),
        "one that may certify": (
            issue(authority, [ANN], [ADMIN], extensions=[(FOR_CLIENTS, False), (CERTIFIES, True)]),
            "it belongs to a certificate authority",
        ),
        "an unknown critical extension": (
            issue(authority, [ANN], [ADMIN], extensions=[(FOR_CLIENTS, True), (SOME, True)]),
            UNKNOWN.format("1.3.6.1.4.1.99999.1"),
        ),
        "critical roles": (
            issue(authority, [ANN], extensions=[(FOR_CLIENTS, False), (ROLES, True)]),
            UNKNOWN.format("1.2.840.10070.8.1"),
        ),
        "a critical mark": (
            issue(authority, [ANN], extensions=[(FOR_CLIENTS, False), (MARK, True)]),
            UNKNOWN.format("1.3.6.1.4.1.12345.1.1"),
        ),
        "usage twice": (
            with_extension_twice(authority, FOR_CLIENTS, last_arc=99),
            "it has the extension 2.5.29.37 twice",
        ),
        "roles twice": (with_extension_twice(authority, ROLES), "it has the extension 1.2.840.10070.8.1 twice"),
        "a mark twice": (with_extension_twice(authority, MARK), "it has the extension 1.3.6.1.4.1.12345.1.1 twice"),
        "huge": (
            authority.issue(["ann"], ["admin"], extensions=[(x509.ObjectIdentifier("1.2.3.4"), b"x" * 60_000)]),
            "it is too large",
        ),
        "huge by its organizations": (authority.issue(["ann"], ["admin", *["x" * 60] * 800]), "it is too large"),
    }
    names = {
        f"name: {what}": (issue(authority, [text(CN, name)], [ADMIN]), CHARACTERS) for what, name in BAD_NAMES.items()
    }
    encodings = {
        f"name: {encoding.name}": (issue(authority, [text(CN, "ann", encoding)], [ADMIN]), OTHER_TYPE)
        for encoding in TEXTS
        if encoding not in PLAIN
    }
    return rows | names | encodings
