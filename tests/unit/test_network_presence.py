"""When an interface counts as one through which frames pass, and what is said when it never is."""

import errno
from pathlib import Path

import pytest

from services.executor.network import presence

PORT, BRIDGE = "jp0", "jb0"


@pytest.fixture
def interfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /sys/class/net: a port and its bridge, both up and forwarding."""
    for name in (PORT, BRIDGE):
        (tmp_path / name / "brport").mkdir(parents=True)
        (tmp_path / name / "carrier").write_text("1\n")
        (tmp_path / name / "operstate").write_text("up\n")
    (tmp_path / PORT / "brport" / "state").write_text("3\n")
    monkeypatch.setattr(presence, "INTERFACES", str(tmp_path))
    monkeypatch.setattr(presence, "PASSING_S_MAX", 0)
    return tmp_path


def test_both_are_up_and_the_port_forwards(interfaces: Path) -> None:
    """Then there is nothing to wait for."""
    presence.wait_until_passing(PORT, BRIDGE)
    assert (interfaces / PORT).is_dir()


@pytest.mark.parametrize(
    ("file", "content"),
    [(f"{PORT}/carrier", "0"), (f"{BRIDGE}/operstate", "down"), (f"{PORT}/brport/state", "1")],
)
def test_anything_missing_is_waited_for_and_told(interfaces: Path, file: str, content: str) -> None:
    """ETIMEDOUT, with the interface's name."""
    (interfaces / file).write_text(content)
    with pytest.raises(OSError, match=f"wait for interface {PORT} to pass frames") as raised:
        presence.wait_until_passing(PORT, BRIDGE)
    assert raised.value.errno == errno.ETIMEDOUT


def test_a_port_that_has_gone_is_not_waited_for(interfaces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENODEV at once, however much time there would be: its job has ended."""
    monkeypatch.setattr(presence, "PASSING_S_MAX", 3600)
    (interfaces / PORT).rename(interfaces / "another")
    with pytest.raises(OSError, match=PORT) as raised:
        presence.wait_until_passing(PORT, BRIDGE)
    assert raised.value.errno == errno.ENODEV
