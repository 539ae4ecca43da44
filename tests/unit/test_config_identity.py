"""The section security.identity: what loads, and what is refused at the start rather than found out by a caller."""

import json
import re
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from common.config.identity import MARKS_MAX, WORDS_MAX, check_identity
from common.config.load import effective, load_settings, settings_of
from common.config.settings import MARKS, Identity, Settings
from common.errors import JobletError, Reason
from services.api.identity import DEFAULT_SCHEMES, Role, Schemes, schemes_of

SECTION = "security: {identity: %s}"
KEY = "security.identity"


def load(directory: Path, section: str) -> Settings:
    """The settings of a file with this section."""
    file = directory / "joblet-config.yml"
    file.write_text(SECTION % section)
    return load_settings(file)


def refusal(directory: Path, section: str) -> tuple[str, str]:
    """What is wrong with a file that has this section, without its name; and what is expected."""
    with pytest.raises(JobletError) as caught:
        load(directory, section)
    assert caught.value.reason is Reason.INVALID
    file, _, message = caught.value.message.partition(": ")
    assert file.endswith("joblet-config.yml")
    return message, caught.value.detail


ROLE = "expected: a role, which is admin, writer, user or reader"
OID = "expected: such as 1.3.6.1.4.1.12345.1.1"
WORD = "expected: 1 to 64 ASCII characters that print, no comma, no space at either end"
OWN_MEANING = "expected: a word of its own for each meaning"
OWN_OID = "expected: one of your own, below 1.3.6.1.4.1"
ORDINARY = "this extension stands in ordinary certificates"


@pytest.mark.parametrize(
    ("section", "message", "detail"),
    [
        ("{roles: {ops: root}}", f"{KEY}.roles.ops is 'root'", ROLE),
        ("{roles: {ops: Admin}}", f"{KEY}.roles.ops is 'Admin'", ROLE),
        ("{roles: {ops: ''}}", f"{KEY}.roles.ops is ''", ROLE),
        ("{marks: {1.2.3: root}}", f"{KEY}.marks.1.2.3 is 'root'", ROLE),
        ("{marks: {1.2.3.: user}}", f"{KEY}.marks.1.2.3.: malformed object identifier", OID),
        ("{marks: {.1.2.3: user}}", f"{KEY}.marks..1.2.3: malformed object identifier", OID),
        ("{marks: {1..2: user}}", f"{KEY}.marks.1..2: malformed object identifier", OID),
        ("{marks: {1.2.03: user}}", f"{KEY}.marks.1.2.03: malformed object identifier", OID),
        ("{marks: {1.2.-3: user}}", f"{KEY}.marks.1.2.-3: malformed object identifier", OID),
        ("{marks: {1.40.1: user}}", f"{KEY}.marks.1.40.1: malformed object identifier", OID),
        ("{marks: {3.1.1: user}}", f"{KEY}.marks.3.1.1: malformed object identifier", OID),
        ("{marks: {'1': user}}", f"{KEY}.marks.1: malformed object identifier", OID),
        ("{marks: {'': user}}", f"{KEY}.marks.: malformed object identifier", OID),
        ("{marks: {adminMark: user}}", f"{KEY}.marks.adminMark: malformed object identifier", OID),
        ("{marks: {1.2.\u0663: user}}", f"{KEY}.marks.1.2.\u0663: malformed object identifier", OID),
        (
            "{marks: {1.2.840.10070.8.1: user}}",
            f"{KEY}.marks.1.2.840.10070.8.1: this extension names roles itself",
            f"it is switched by {KEY}.extension",
        ),
        ("{marks: {2.5.29.37: user}}", f"{KEY}.marks.2.5.29.37: {ORDINARY}", OWN_OID),
        ("{marks: {1.3.6.1.5.5.7.1.1: user}}", f"{KEY}.marks.1.3.6.1.5.5.7.1.1: {ORDINARY}", OWN_OID),
        ("{marks: {2.16.840.1.113730.1.13: user}}", f"{KEY}.marks.2.16.840.1.113730.1.13: {ORDINARY}", OWN_OID),
        ("{roles: {'': user}}", f"{KEY}.roles.'': malformed word", WORD),
        ("{roles: {' ops': user}}", f"{KEY}.roles.' ops': malformed word", WORD),
        ("{roles: {'ops ': user}}", f"{KEY}.roles.'ops ': malformed word", WORD),
        ("{roles: {'a,b': user}}", f"{KEY}.roles.'a,b': malformed word", WORD),
        ("{roles: {'\u043eps': user}}", f"{KEY}.roles.'\u043eps': malformed word", WORD),
        ('{roles: {"ops\\n": user}}', f"{KEY}.roles.'ops\\n': malformed word", WORD),
        ("{roles: {%s: user}}" % ("x" * 65), f"{KEY}.roles.'{'x' * 65}': malformed word", WORD),
        (
            "{roles: {user: admin}}",
            f"{KEY}.roles.user is 'admin', but a role's own name means 'user'",
            OWN_MEANING,
        ),
        (
            "{roles: {Admin: reader}}",
            f"{KEY}.roles.Admin is 'reader', but a role's own name means 'admin'",
            OWN_MEANING,
        ),
        (
            "{roles: {Ops: admin, ops: reader}}",
            f"{KEY}.roles.ops is 'reader', but 'Ops' means 'admin'",
            OWN_MEANING,
        ),
        ("{roles: {ops: admin, ops: admin}}", "key ops twice, line 1", "keep one of them"),
        ("{marks: {1.2.3: user, 1.2.3: admin}}", "key 1.2.3 twice, line 1", "keep one of them"),
        (
            "{organization: false, extension: false, marks: {}}",
            f"{KEY}: organization, extension and marks are all off",
            "expected: one of them, or nobody can call",
        ),
        (
            "{organization: perhaps}",
            f"{KEY}.organization is 'perhaps' (str)",
            "expected: true or false",
        ),
        ("{marks: {1.2: user}}", f"{KEY}.marks is {{1.2: 'user'}} (dict)", "expected: a map of text to text"),
        ("{marks: [1.2.3]}", f"{KEY}.marks is ['1.2.3'] (list)", "expected: a map of text to text"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, section: str, message: str, detail: str) -> None:
    """The key, what is wrong with it, and what is expected: word for word."""
    assert refusal(tmp_path, section) == (message, detail)


def test_there_is_an_end_to_words_and_marks(tmp_path: Path) -> None:
    """At the bound they load, one above they do not."""
    for key, most, name, value in (("roles", WORDS_MAX, "team{}", "user"), ("marks", MARKS_MAX, "1.2.3.{}", "user")):
        entries = {name.format(number): value for number in range(most + 1)}
        assert refusal(tmp_path, json.dumps({key: entries})) == (
            f"{KEY}.{key} has {most + 1} entries",
            f"expected: at most {most}",
        )
        entries.popitem()
        assert load(tmp_path, json.dumps({key: entries}))


def test_what_loads_means_what_it_says(tmp_path: Path) -> None:
    """Switches, marks in place of the usual ones, words; the defaults are those of the sources."""
    given_all = "{organization: false, marks: {1.3.6.1.4.1.99999.7: writer}, roles: {ACME Ops: admin, admin: admin}}"
    assert schemes_of(load(tmp_path, given_all).security.identity) == Schemes(
        organization=False,
        extension=True,
        marks=(("1.3.6.1.4.1.99999.7", Role.WRITER),),
        words=(("ACME Ops", Role.ADMIN), ("admin", Role.ADMIN)),
    )
    for nothing in ("{}", "", "{roles: {}}"):
        assert schemes_of(load(tmp_path, nothing).security.identity) == DEFAULT_SCHEMES
    usual = (("1.3.6.1.4.1.12345.1.1", Role.ADMIN), ("1.3.6.1.4.1.12345.1.2", Role.READER))
    assert Schemes(marks=usual) == DEFAULT_SCHEMES
    assert schemes_of(load(tmp_path, "{marks: {}}").security.identity).marks == ()


def test_what_is_shown_can_be_loaded_again(tmp_path: Path) -> None:
    """`config show` prints the section as it holds."""
    settings = load(tmp_path, "{extension: false, marks: {}, roles: {ops: admin}}")
    shown = effective(settings)["security"]["identity"]
    assert shown == {"organization": True, "extension": False, "marks": {}, "roles": {"ops": "admin"}}
    assert settings_of(json.dumps({"security": {"identity": shown}}), source="shown").security == settings.security
    assert effective(Settings())["security"]["identity"]["marks"] == MARKS


@given(
    st.text(max_size=70) | st.from_regex(re.compile(r"[0-2](\.\d{1,20}){1,20}"), fullmatch=True), st.text(max_size=70)
)
def test_whatever_passes_can_be_used(oid: str, word: str) -> None:
    """A mark that passes is an object identifier to the library; a word that passes is one word of one spelling."""
    for identity in (Identity(marks={oid: "user"}), Identity(roles={word: "user"})):
        try:
            check_identity(identity)
        except JobletError:
            continue
        schemes = schemes_of(identity)
        if identity.roles:
            assert schemes.words == ((word, Role.USER),)
            assert word == word.strip()
            assert word.isascii()
            assert word.isprintable()
            assert "," not in word
        else:
            assert x509.ObjectIdentifier(oid).dotted_string == oid
