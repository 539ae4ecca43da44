"""What is known of volumes beside their records: which are mounted, since when nobody has them, and their metrics.

Kept in memory, from the start of the service on. Not here: any decision about it (`rounds.py`).
"""

from collections.abc import Callable

from msgspec.structs import replace

from common.identifiers import VolumeId
from common.messages.volumes import VolumeMetrics, VolumeRecord
from services.volumes.ports import Moved, Space

NS_PER_US = 1000


class Gauges:
    """Of all volumes. `steady_ns`: a clock that is never set."""

    def __init__(self, steady_ns: Callable[[], int]) -> None:
        self._steady_ns = steady_ns
        self._left_at_ns: dict[VolumeId, int] = {}
        self._metrics: dict[VolumeId, VolumeMetrics] = {}
        self._spaces: dict[VolumeId, Space] = {}
        self.warnings: dict[VolumeId, str] = {}
        """What is to be told of a volume besides its status."""

    @property
    def mounted(self) -> dict[VolumeId, int]:
        """Every mounted volume, and when it was last taken or left by somebody, on the steady clock."""
        return dict(self._left_at_ns)

    def is_mounted(self, volume: VolumeId) -> bool:
        """Whether it is."""
        return volume in self._left_at_ns

    def touch(self, volume: VolumeId) -> None:
        """Somebody has it, or has just left it."""
        if volume in self._left_at_ns:
            self._left_at_ns[volume] = self._steady_ns()

    def note_mounted(self, volume: VolumeId, took_ns: int | None) -> None:
        """It is mounted; None: it was found so."""
        known = volume in self._left_at_ns
        self._left_at_ns[volume] = self._steady_ns()
        if took_ns is not None and not known:
            before = self._metrics.get(volume, VolumeMetrics())
            self._metrics[volume] = replace(before, mounts=before.mounts + 1, mount_us=took_ns // NS_PER_US)

    def note_unmounted(self, volume: VolumeId, took_ns: int) -> None:
        """It is mounted no more. What it holds is in its record from now on."""
        if self._left_at_ns.pop(volume, None) is None:
            return
        self._spaces.pop(volume, None)
        before = self._metrics.get(volume, VolumeMetrics())
        self._metrics[volume] = replace(before, unmounts=before.unmounts + 1, unmount_us=took_ns // NS_PER_US)

    def note_space(self, volume: VolumeId, space: Space, moved: Moved) -> None:
        """It was measured."""
        if volume in self._left_at_ns:
            self._spaces[volume] = space
            before = self._metrics.get(volume, VolumeMetrics())
            self._metrics[volume] = replace(before, **moved._asdict())

    def space_of(self, volume: VolumeId) -> Space | None:
        """What it held when it was measured last; None: not since it is mounted."""
        return self._spaces.get(volume)

    def forget(self, volume: VolumeId) -> None:
        """It is gone."""
        for known in (self._left_at_ns, self._metrics, self._spaces, self.warnings):
            known.pop(volume, None)

    def shown(self, record: VolumeRecord, *, snapshots: int) -> VolumeRecord:
        """The record with all of this in it."""
        space = self._spaces.get(record.id)
        usage = {} if space is None else space._asdict()
        return replace(
            record,
            reason=record.reason or self.warnings.get(record.id, ""),
            snapshots=snapshots,
            metrics=self._metrics.get(record.id, VolumeMetrics()),
            **usage,
        )
