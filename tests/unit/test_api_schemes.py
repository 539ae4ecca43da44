"""Where roles stand in a certificate: every scheme, every mixture, every switch, and words of the operator's own."""

import itertools
import time
from typing import Final

import msgspec
import pytest

from common.config import identity as checked
from common.config.settings import MARKS, RoleLimits, RoleQuotas
from common.config.settings import Identity as IdentitySettings
from common.errors import JobletError, Reason
from services.api.identity import (
    DEFAULT_SCHEMES,
    EXTRACTORS,
    ROLES_EXTENSION,
    Role,
    Schemes,
    principal_of,
    read_certificate,
    schemes_of,
)
from tests.certificates import ADMIN_MARK, CLIENT, READER_MARK, Authority, Identity, utf8_der
from tests.odd_certificates import CN, TEXTS, Encoding, O, issue, text

AUTHORITY = Authority()
PRESENT: Final = b"\x05\x00"
GIVES: Final = {"organization": Role.USER, "extension": Role.WRITER, "marks": Role.ADMIN}
"""What `carrying` writes into the place of each scheme."""
SUBSETS: Final = [set(some) for size in range(4) for some in itertools.combinations(GIVES, size)]


def carrying(places: set[str]) -> Identity:
    """A certificate that has roles in these places."""
    extensions = [(ROLES_EXTENSION, utf8_der(GIVES["extension"]))] if "extension" in places else []
    extensions += [(ADMIN_MARK, PRESENT)] if "marks" in places else []
    return AUTHORITY.issue(["ann"], [GIVES["organization"]] if "organization" in places else [], extensions=extensions)


CARRYING: Final = {frozenset(places): carrying(places) for places in SUBSETS}


def switched(on: set[str]) -> Schemes:
    """Settings with these schemes alone."""
    return schemes_of(
        IdentitySettings(
            organization="organization" in on, extension="extension" in on, marks=MARKS if "marks" in on else {}
        )
    )


def roles(identity: Identity, schemes: Schemes = DEFAULT_SCHEMES) -> set[str]:
    """The roles of a certificate now; none where it is refused for having none."""
    try:
        return set(principal_of(identity.cert, schemes, now_s=time.time()).roles)
    except JobletError as error:
        if (error.reason, error.message) != (Reason.DENIED, "ann has no role"):
            raise
        return set()


@pytest.mark.requirement("S3.25")
@pytest.mark.requirement("S4.19")
@pytest.mark.requirement("S2.24")
@pytest.mark.requirement("S2.25")
@pytest.mark.threat("D08")
@pytest.mark.parametrize("on", SUBSETS[1:], ids=lambda on: "+".join(sorted(on)))
@pytest.mark.parametrize("places", SUBSETS, ids=lambda places: "+".join(sorted(places)) or "none")
def test_every_mixture_under_every_switch(places: set[str], on: set[str]) -> None:
    """What counts is what stands in the certificate and is switched on: together, and nothing else."""
    assert list(EXTRACTORS) == list(GIVES)
    identity = CARRYING[frozenset(places)]
    assert roles(identity, switched(on)) == {GIVES[scheme] for scheme in places & on}
    counting = [scheme for scheme in EXTRACTORS if scheme in places & on]
    assert read_certificate(identity.cert, switched(on)).principal.scheme == "+".join(counting)


@pytest.mark.parametrize(
    ("organizations", "expected"),
    [
        (["admin"], {"admin"}),
        (["writer"], {"writer"}),
        (["user"], {"user"}),
        (["reader"], {"reader"}),
        (["user", "reader"], {"user", "reader"}),
        (["ACME GmbH", "writer", "Zürich", "reader"], {"writer", "reader"}),
        (["admin,reader"], set()),  # one value is one word
        (["admin "], set()),
        ([" admin"], set()),
        (["Admin"], set()),
        (["ADMIN", "user"], {"user"}),
        (["аdmin"], set()),  # Cyrillic
        (["admin\0"], set()),
        (["ａdmin"], set()),
        (["ad\u200bmin"], set()),
        (["root", "superuser"], set()),
        ([], set()),
    ],
)
@pytest.mark.threat("D08")
@pytest.mark.threat("D10")
def test_words_of_organizations(organizations: list[str], expected: set[str]) -> None:
    """Each O is one word, compared byte by byte; unknown ones beside known ones do no harm and no good."""
    assert roles(AUTHORITY.issue(["ann"], organizations)) == expected


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("writer", {"writer"}),
        ("reader,writer", {"reader", "writer"}),
        ("reader , writer", {"reader", "writer"}),
        ("  reader,writer  ", {"reader", "writer"}),
        ("reader,,writer,", {"reader", "writer"}),
        ("root,user", {"user"}),
        ("user,user", {"user"}),
        ("", set()),
        (" ", set()),
        (",", set()),
        ("Writer", set()),
        ("WRITER,reader", {"reader"}),
        ("reader;writer", set()),
        ("reader writer", set()),
        ("reader\twriter", set()),
        ("writer\n", set()),
        ("writer\u00a0", set()),
        ("writer\0", set()),
        ("wr\u0456ter", set()),
    ],
)
@pytest.mark.requirement("S4.19")
@pytest.mark.threat("D10")
def test_words_of_the_extension(listed: str, expected: set[str]) -> None:
    """A list with commas; spaces around a word, and empty words, are nothing; all else must match exactly."""
    assert roles(AUTHORITY.issue(["ann"], extensions=[(ROLES_EXTENSION, utf8_der(listed))])) == expected


@pytest.mark.parametrize(
    ("what", "der"),
    [
        ("not a UTF8String", b""),
        ("not a UTF8String", b"\x0c"),
        ("not a UTF8String", b"\x13\x05admin"),  # PrintableString
        ("not a UTF8String", b"\x16\x05admin"),  # IA5String
        ("not a UTF8String", b"\x1e\x0a\0a\0d\0m\0i\0n"),  # BMPString
        ("not a UTF8String", b"\x2c\x07\x0c\x05admin"),  # constructed
        ("not a UTF8String", b"\x30\x07\x0c\x05admin"),  # SEQUENCE
        ("not a UTF8String", b"admin"),
        ("the length does not match", b"\x0c\x05admi"),
        ("the length does not match", b"\x0c\x05admin\x00"),
        ("the length does not match", b"\x0c\x05admin\x0c\x05admin"),
        ("the length is not in its shortest form", b"\x0c\x81\x05admin"),
        ("the length is not in its shortest form", b"\x0c\x80admin\0\0"),
        ("the length is not in its shortest form", b"\x0c\x82\x00\x05admin"),
        ("codec can't decode", b"\x0c\x02\xff\xfe"),
        ("codec can't decode", b"\x0c\x06admin\xc0"),
        ("codec can't decode", b"\x0c\x02\xc1\xa1"),  # overlong
    ],
)
@pytest.mark.requirement("S4.19")
def test_what_is_no_utf8string_refuses_the_certificate(what: str, der: bytes) -> None:
    """The authority signed something else there than roles: not even a role in another place counts."""
    identity = AUTHORITY.issue(["ann"], ["admin"], extensions=[(ROLES_EXTENSION, der), (READER_MARK, PRESENT)])
    with pytest.raises(JobletError) as refused:
        principal_of(identity.cert, now_s=time.time())
    assert refused.value.reason is Reason.UNAUTHENTICATED
    told = "client certificate refused: its extension 1.2.840.10070.8.1 is not one UTF8String: "
    assert refused.value.message.startswith(told)
    assert what in refused.value.message
    assert roles(identity, switched({"organization"})) == {"admin"}  # it is not looked at where it does not count


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([ADMIN_MARK], {"admin"}),
        ([READER_MARK], {"reader"}),
        ([ADMIN_MARK, READER_MARK], {"admin", "reader"}),
    ],
)
@pytest.mark.parametrize("content", [b"", PRESENT, b"\x0c\x04user", b"\xff" * 300])
@pytest.mark.requirement("S2.24")
def test_a_mark_means_its_role_by_its_presence(marks: list[object], expected: set[str], content: bytes) -> None:
    """Whatever it contains; nothing of it is read."""
    extensions = [(mark, content) for mark in (ADMIN_MARK, READER_MARK) if mark in marks]
    assert roles(AUTHORITY.issue(["ann"], extensions=extensions)) == expected


def test_words_and_marks_of_the_operator() -> None:
    """Further words count in O and in the extension, beside the roles' names; marks that he names replace ours."""
    schemes = schemes_of(
        IdentitySettings(
            roles={"platform-team": "admin", "ACME Audit": "reader", "Writer": "writer"}, marks={"1.2.3.4": "user"}
        )
    )
    mark = type(ADMIN_MARK)("1.2.3.4")
    for organizations, listed, marks, expected in (
        (["platform-team"], None, [], {"admin"}),
        (["ACME Audit", "user"], None, [], {"reader", "user"}),
        (["Platform-Team"], None, [], set()),
        ([], "ACME Audit , platform-team", [], {"reader", "admin"}),
        ([], "Writer,ADMIN", [], {"writer"}),
        ([], None, [mark], {"user"}),
        ([], None, [ADMIN_MARK], set()),
        (["reader"], "platform-team", [mark], {"reader", "admin", "user"}),
    ):
        extensions = [(ROLES_EXTENSION, utf8_der(listed))] if listed else []
        identity = AUTHORITY.issue(["ann"], organizations, extensions=[*extensions, *((one, PRESENT) for one in marks)])
        assert roles(identity, schemes) == expected, (organizations, listed)


def test_two_configurations_never_mix_in_the_cache() -> None:
    """The same bytes under two configurations are two answers, in whatever order they are asked for."""
    identity = AUTHORITY.issue(["ann"], ["ops"], extensions=[(READER_MARK, PRESENT)])
    ops_are_admins = schemes_of(IdentitySettings(roles={"ops": "admin"}))
    for _ in range(2):
        assert roles(identity) == {"reader"}
        assert roles(identity, ops_are_admins) == {"admin", "reader"}
        assert roles(identity, switched({"organization"})) == set()
    read_certificate.cache_clear()
    same = schemes_of(IdentitySettings(roles={"b": "user", "a": "user"}))
    assert same == schemes_of(IdentitySettings(roles={"a": "user", "b": "user"}))
    for schemes in (same, same, ops_are_admins):
        read_certificate(identity.cert, schemes)
    assert (read_certificate.cache_info().hits, read_certificate.cache_info().misses) == (1, 2)


@pytest.mark.parametrize("encoding", TEXTS, ids=lambda encoding: encoding.name)
def test_roles_are_plainly_written(encoding: Encoding) -> None:
    """An O in another type than UTF8String and PrintableString is no role: those are what authorities must use."""
    plain = encoding in {Encoding.UTF8String, Encoding.PrintableString}
    identity = issue(AUTHORITY, [text(CN, "ann")], [text(O, "admin", encoding)])
    assert roles(identity) == ({"admin"} if plain else set())


def test_a_role_in_any_other_place_is_none() -> None:
    """In the common name, the alternative names, other attributes, other extensions: not looked at."""
    for identity in (
        AUTHORITY.issue(["ann"], names=["admin", "writer"]),
        issue(AUTHORITY, [text(CN, "ann")], [text(type(CN)("2.5.4.11"), "admin")]),  # OU
        issue(AUTHORITY, [text(CN, "ann")], [text(type(CN)("2.5.4.12"), "admin")]),  # title
        AUTHORITY.issue(["ann"], extensions=[(type(CN)("1.2.840.10070.8.2"), utf8_der("admin"))]),
        AUTHORITY.issue(["ann"], usages=[CLIENT, ADMIN_MARK]),
    ):
        assert roles(identity) == set()
    with pytest.raises(JobletError, match=r"^admin has no role: "):
        principal_of(AUTHORITY.issue(["admin"]).cert, now_s=time.time())


def test_roles_have_the_same_names_everywhere() -> None:
    """The configuration, which may not import services, knows the roles by words: these are all of them."""
    assert tuple(Role) == checked.ROLES
    assert ROLES_EXTENSION.dotted_string == checked.ROLES_EXTENSION
    assert {field.name for field in msgspec.structs.fields(RoleQuotas)} == set(Role)
    assert {field.name for field in msgspec.structs.fields(RoleLimits)} < set(Role)
