"""Which loop device an image gets where others take and remove devices, too. With real devices: tests/linux."""

import errno
import os
from types import SimpleNamespace

import pytest

from common.errors import JobletError, Reason
from services.volumes.linux import loop
from services.volumes.storage import loops

IMAGE = 0


class Devices:
    """Offers 0, 1, 2, …; `opening` and `configuring` are the errors that the first ones of them meet."""

    def __init__(self, *, opening: list[int] | None = None, configuring: list[int] | None = None) -> None:
        self._opening, self._configuring = opening or [], configuring or []
        self._offered = -1
        self.held: list[int] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Instead of the kernel's."""
        calls = SimpleNamespace(**{name: getattr(os, name) for name in ("O_RDONLY", "O_RDWR", "O_CLOEXEC")})
        calls.open, calls.close = self._open, self.held.remove
        monkeypatch.setattr(loops, "os", calls)
        monkeypatch.setattr(loop, "free_number", self._free_number)
        monkeypatch.setattr(loop, "configure", self._configure)

    def _free_number(self) -> int:
        self._offered += 1
        return self._offered

    def _open(self, path: str, _: int) -> int:
        if self._opening:
            raise OSError(self._opening.pop(0), path)
        self.held.append(self._offered)
        return self._offered

    def _configure(self, *_: object, **__: object) -> None:
        if self._configuring:
            raise OSError(self._configuring.pop(0), "device")


def test_a_device_that_is_taken_or_removed_meanwhile_is_left_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both happen between asking for a free one and having it; nothing of the first ones stays open."""
    devices = Devices(opening=[errno.ENXIO], configuring=[errno.EBUSY])
    devices.install(monkeypatch)
    assert loops._attach(IMAGE, read_only=False) == ("/dev/loop2", 2)
    assert devices.held == [2]


def test_devices_that_are_taken_every_time_end_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """UNAVAILABLE: it may be tried again."""
    devices = Devices(configuring=[errno.EBUSY] * 1000)
    devices.install(monkeypatch)
    with pytest.raises(JobletError, match="was taken by somebody else") as refused:
        loops._attach(IMAGE, read_only=True)
    assert refused.value.reason is Reason.UNAVAILABLE
    assert devices.held == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_another_error_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Of opening as of configuring."""
    for devices in (Devices(opening=[number]), Devices(configuring=[number])):
        with monkeypatch.context() as patched:
            devices.install(patched)
            with pytest.raises(OSError, match="dev") as raised:
                loops._attach(IMAGE, read_only=False)
        assert raised.value.errno == number
        assert devices.held == []
