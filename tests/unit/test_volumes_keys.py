"""Keys of volumes: what is stored of one opens for its volume only, and nothing of one is shown."""

import traceback
from pathlib import Path

import pytest

from common.errors import JobletError, Reason
from common.identifiers import new_volume_id
from common.vault import Vault
from services.volumes.keys import KEY_BYTES, Keys

pytestmark = [pytest.mark.requirement("S1.39"), pytest.mark.requirement("S1.46")]


def test_a_key_opens_for_its_volume(tmp_path: Path) -> None:
    """Also for the next process; each volume has another one, of 64 bytes."""
    keys, volume = Keys(tmp_path / "key"), new_volume_id()
    key, sealed = keys.new(volume)
    assert len(key) == KEY_BYTES == 64
    assert Keys(tmp_path / "key").open(volume, sealed) == key
    assert keys.new(new_volume_id())[0] != key


@pytest.mark.threat("F10")
def test_what_is_stored_alone_opens_nothing(tmp_path: Path) -> None:
    """Neither changed anywhere, nor for another volume, nor on another node: DATA_LOSS, with what to do."""
    keys, volume = Keys(tmp_path / "key"), new_volume_id()
    key, sealed = keys.new(volume)
    assert key not in sealed
    assert key.hex().encode() not in sealed
    other = Keys(tmp_path / "other")
    other.new(volume)
    changed = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]
    attempts = [(keys, volume, each) for each in (*changed, b"", sealed[:-1], sealed + b"x")]
    attempts += [(keys, new_volume_id(), sealed), (other, volume, sealed)]
    for opener, whose, content in attempts:
        with pytest.raises(JobletError, match="cannot be opened with the node's key") as refused:
            opener.open(whose, content)
        assert (refused.value.reason, refused.value.retryable) == (Reason.DATA_LOSS, False)
        assert "backup" in refused.value.detail


def test_a_lost_key_file_is_not_replaced(tmp_path: Path) -> None:
    """It is told of, and the backup finds its place free; the first key of a node makes the file."""
    file, volume = tmp_path / "key", new_volume_id()
    _, sealed = Keys(file).new(volume)
    file.unlink()
    for attempt in (lambda: Keys(file).open(volume, sealed), lambda: Keys(file).new(new_volume_id(), others=True)):
        with pytest.raises(JobletError, match="is missing") as refused:
            attempt()
        assert refused.value.reason is Reason.DATA_LOSS
        assert not file.exists()


def test_nobody_is_told_to_remove_a_damaged_key_file(tmp_path: Path) -> None:
    """The advice for secrets of jobs would lose every encrypted volume; that for a file that others can read stays."""
    file, volume = tmp_path / "key", new_volume_id()
    _, sealed = Keys(file).new(volume)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    for attempt in (lambda: Keys(file).open(volume, sealed), lambda: Keys(file).new(volume)):
        with pytest.raises(JobletError) as refused:
            attempt()
        assert refused.value.reason is Reason.PRECONDITION
        assert "remove" not in refused.value.detail
        assert "backup" in refused.value.detail
    file.write_bytes(content)
    file.chmod(0o644)
    with pytest.raises(JobletError, match="chmod 600"):
        Keys(file).open(volume, sealed)


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    """Sealed rightly, and of another shape or length."""
    file, volume = tmp_path / "key", new_volume_id()
    for secrets in ({"KEY": "00" * 64}, {"key": "00" * 32}, {"key": "zz" * 64}):
        with pytest.raises(JobletError) as refused:
            Keys(file).open(volume, Vault(file).seal(volume, secrets))
        assert refused.value.reason is Reason.DATA_LOSS


def test_a_clone_has_the_same_key_sealed_anew(tmp_path: Path) -> None:
    """For its own id; the source's row does not open it, nor the other way round."""
    keys, source, target = Keys(tmp_path / "key"), new_volume_id(), new_volume_id()
    key, sealed = keys.new(source)
    moved = keys.transfer(sealed, source, target)
    assert keys.open(target, moved) == key
    assert moved != sealed
    for whose, content in ((source, moved), (target, sealed)):
        with pytest.raises(JobletError):
            keys.open(whose, content)
    with pytest.raises(JobletError):
        keys.transfer(sealed, target, source)


def test_no_key_is_shown(tmp_path: Path) -> None:
    """Not by repr, and not by an error with everything that led to it."""
    keys, volume = Keys(tmp_path / "key"), new_volume_id()
    key, sealed = keys.new(volume)
    shown = repr(keys)
    try:
        keys.open(new_volume_id(), sealed)
    except JobletError as refused:
        shown += "".join(traceback.format_exception(refused))
    assert "cannot be opened" in shown
    for secret in (key, (tmp_path / "key").read_bytes()):
        assert secret.hex() not in shown
        assert repr(secret) not in shown
