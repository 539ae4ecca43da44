"""Identifiers from outside: what passes, and the tricks that do not."""

from collections.abc import Callable

import pytest

from common.errors import JobletError, Reason
from common.identifiers import (
    new_job_id,
    parse_job_id,
    parse_job_reference,
    parse_key,
    parse_name,
    parse_node_id,
)

JOB = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
TRICKS = [
    "",
    ".",
    "..",
    "/",
    "../../etc/passwd",
    "a/b",
    "a\x00",
    f"{JOB}\x00",
    f"{JOB}\n",
    f"\n{JOB}",
    "%00",
    "%2f",
    "a\nb",
    "-rf",
    "--help",
    "ünïcode",
    "а" * 8,
    "\u200b" * 8,
    " " * 8,
    "\x1b[31m" + "a" * 8,
    "a" * 256,
    "a" * 1000000,
    "*" * 8,
    "$(reboot)",
    ";ls",
    "a b",
    "a\tb",
    "\u202eabcdefgh",
]


def refused(parse: Callable[[str], str], text: str) -> None:
    """Check that `parse` refuses `text` with a short error of reason INVALID that shows no control character."""
    with pytest.raises(JobletError) as caught:
        parse(text)
    assert caught.value.reason is Reason.INVALID
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


@pytest.mark.threat("B12")
@pytest.mark.parametrize(
    "text", [*TRICKS, JOB.upper(), JOB[:-1], JOB + "0", JOB.replace("-", ""), JOB.replace("-4", "-1", 1)]
)
def test_job_id_is_exact(text: str) -> None:
    """Only a canonical UUIDv4 is a job id: it becomes a path and a topic."""
    refused(parse_job_id, text)


def test_new_job_ids_are_job_ids() -> None:
    """What we make is what we accept, and no two are the same."""
    made = {parse_job_id(new_job_id()) for _ in range(100)}
    assert len(made) == 100


@pytest.mark.threat("B12")
@pytest.mark.parametrize("text", [*TRICKS, "6fa459e", "6FA459EA", "g" * 8, "x" * 37, "0" * 37])
def test_job_reference_is_hex(text: str) -> None:
    """A prefix has 8 to 36 characters of [0-9a-f-]."""
    refused(parse_job_reference, text)


@pytest.mark.parametrize("text", [JOB, JOB[:8], JOB[:9], JOB[:35]])
def test_job_reference_accepts_prefixes(text: str) -> None:
    """The full id, or at least its first 8 characters."""
    assert parse_job_reference(text) == text


@pytest.mark.threat("D25")
@pytest.mark.parametrize("text", [*TRICKS, ".hidden", "_x", "a" * 64, "name/..", "a\\b"])
def test_name_tricks(text: str) -> None:
    """Nothing that a path, a shell, a terminal or an option parser could misread is a name."""
    refused(lambda each: parse_name(each, "job"), text)


@pytest.mark.parametrize("text", ["a", "9", "A.b_c-d", "a" * 63, "cpu.max", "CON", "a..b"])
def test_names(text: str) -> None:
    """Names that are files elsewhere are only names here: no path is made of a name."""
    assert parse_name(text, "job") == text


@pytest.mark.requirement("S0.21")
@pytest.mark.threat("D25")
@pytest.mark.parametrize("text", [*TRICKS, "a" * 129])
def test_node_id_tricks(text: str) -> None:
    """A node id becomes part of names elsewhere."""
    refused(parse_node_id, text)


def test_node_ids() -> None:
    """Host names and the like are node ids."""
    assert parse_node_id("node-1.example.org") == "node-1.example.org"


@pytest.mark.threat("D25")
@pytest.mark.parametrize("text", ["", " ", "a b", "a\n", "a\x00", "k" * 129, "ключ", "a;b", "a%b"])
def test_key_tricks(text: str) -> None:
    """A key is opaque, but bounded and printable."""
    refused(lambda each: parse_key(each, "idempotency key"), text)


@pytest.mark.parametrize("text", ["a", "deploy/2024-01-01T00:00@host", "k" * 128])
def test_keys(text: str) -> None:
    """What clients use as tokens passes."""
    assert parse_key(text, "idempotency key") == text
