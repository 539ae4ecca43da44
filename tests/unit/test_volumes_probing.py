"""What the doctor is told of volumes: a level for each way, and a reason with the repair where it is not enforced."""

from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from common.messages.jobs import Capability
from services.volumes.encryption.choose import Encryption
from services.volumes.encryption.dmcrypt import DmCrypt
from services.volumes.encryption.fscrypt import Fscrypt
from services.volumes.probing import capabilities, report


class Found(NamedTuple):
    """A host that can everything, but for what is named."""

    memory: str = ""
    image: str = ""
    project: str = ""
    encryption: Encryption | None = DmCrypt()
    no_encryption: str = ""


def levels(found: Found) -> dict[str, str]:
    """By the part of the name that tells."""
    return {each.name.removeprefix("volume."): each.level for each in capabilities(found)}


@pytest.mark.requirement("S1.15")
def test_a_host_that_can_everything_needs_no_words() -> None:
    """Four names, which are stable."""
    assert levels(Found()) == dict.fromkeys(("memory", "image", "project_quota", "encryption"), "enforced")
    assert not any(each.detail for each in capabilities(Found()))


def test_a_reason_is_told_with_what_happens_instead() -> None:
    """The rest is as it was."""
    no_project = capabilities(Found(project="mount it with prjquota"))
    assert [each.level for each in no_project] == ["enforced", "enforced", "missing", "enforced"]
    assert no_project[2].detail == "mount it with prjquota; volumes are images"
    neither = capabilities(Found(image="modprobe loop", project="mount it with prjquota"))
    assert "modprobe loop" in neither[1].detail
    assert "--advisory" in neither[1].detail
    assert neither[2].detail == "mount it with prjquota"
    assert (neither[3].level, neither[3].detail) == ("missing", "only images are encrypted: modprobe loop")


@pytest.mark.requirement("S1.39")
def test_what_an_encryption_leaves_visible_is_told() -> None:
    """The second choice is not as good as the first, and a host without either says why."""
    second = capabilities(Found(encryption=Fscrypt()))[-1]
    assert second.level == "degraded"
    assert "sizes, times, owners" in second.detail
    assert "CONFIG_DM_CRYPT" in second.detail
    none = capabilities(Found(encryption=None, no_encryption="no module"))[-1]
    assert (none.level, none.detail) == ("missing", "no module")


def test_it_crosses_to_the_doctor_whole() -> None:
    """One line of JSON, which the doctor decodes."""
    found = Found(image="a\nb")
    line = report(found)
    assert "\n" not in line
    assert msgspec.json.decode(line, type=tuple[Capability, ...]) == capabilities(found)


def test_every_name_stands_in_the_documentation() -> None:
    """Scripts rely on them."""
    manual = Path("docs/operations.md").read_text(encoding="utf-8")
    assert not [each.name for each in capabilities(Found()) if f"`{each.name}`" not in manual]
