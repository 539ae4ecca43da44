"""What the volumes service answers on its command endpoint: one handler a message.

Raises JobletError; the bus carries it.
"""

import dataclasses
from collections.abc import Mapping

from common.bus.requests import Handler
from common.errors import JobletError
from common.identifiers import VolumeId, parse_name, parse_volume_id
from common.messages import volumes as messages
from common.messages.envelope import Body
from common.messages.volumes import VolumeRecord
from services.volumes.copies import Copies
from services.volumes.events import Volume
from services.volumes.gauges import Gauges
from services.volumes.life import Life
from services.volumes.pages import page
from services.volumes.records import Records, no_volume
from services.volumes.rounds import Rounds
from services.volumes.transfers import Transfers
from services.volumes.uses import Uses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Commands:
    """The handlers and what they need."""

    records: Records
    gauges: Gauges
    rounds: Rounds
    life: Life
    uses: Uses
    copies: Copies
    transfers: Transfers
    instance: str

    def handlers(self) -> Mapping[type[Body], Handler]:
        """The handler of each command."""
        return {
            messages.CreateVolume: self.create_volume,
            messages.GetVolume: self.get_volume,
            messages.ListVolumes: self.list_volumes,
            messages.DeleteVolume: self.delete_volume,
            messages.ResizeVolume: self.resize_volume,
            messages.CreateSnapshot: self.create_snapshot,
            messages.ListSnapshots: self.list_snapshots,
            messages.DeleteSnapshot: self.delete_snapshot,
            messages.RestoreSnapshot: self.restore_snapshot,
            messages.CloneVolume: self.clone_volume,
            messages.OpenVolumeStream: self.open_volume_stream,
            messages.GetVolumesService: self.get_service,
            messages.CheckVolumes: self.check_volumes,
            messages.PrepareVolumes: self.prepare_volumes,
            messages.ReleaseVolumes: self.release_volumes,
            messages.SyncVolumes: self.sync_volumes,
        }

    async def create_volume(self, request: messages.CreateVolume) -> Body:
        """Make a volume."""
        return self._found(await self.life.create(request))

    async def get_volume(self, request: messages.GetVolume) -> Body:
        """One volume, with what it holds now."""
        volume = self._visible(request)
        await self.rounds.look(volume.id)
        return self._found(volume.id)

    async def list_volumes(self, request: messages.ListVolumes) -> Body:
        """One page of volumes."""
        return page((self._shown(volume) for volume in self.records.all()), request)

    async def delete_volume(self, request: messages.DeleteVolume) -> Body:
        """Remove a volume."""
        volume = parse_volume_id(request.volume)
        await self.life.delete(volume)
        return messages.VolumeDeleted(volume=volume)

    async def resize_volume(self, request: messages.ResizeVolume) -> Body:
        """Make a volume larger."""
        volume = parse_volume_id(request.volume)
        await self.life.resize(volume, request.size_bytes)
        return self._found(volume)

    async def create_snapshot(self, request: messages.CreateSnapshot) -> Body:
        """Keep the content as it is."""
        snapshot = await self.copies.take(parse_volume_id(request.volume), request.name)
        return messages.SnapshotFound(snapshot=snapshot)

    async def list_snapshots(self, request: messages.ListSnapshots) -> Body:
        """All snapshots of a volume."""
        volume = self.records.get(parse_volume_id(request.volume))
        return messages.SnapshotList(snapshots=self.records.snapshots(volume.id))

    async def delete_snapshot(self, request: messages.DeleteSnapshot) -> Body:
        """Remove a snapshot."""
        volume = parse_volume_id(request.volume)
        await self.copies.drop(volume, request.name)
        return messages.SnapshotDeleted(volume=volume, name=request.name)

    async def restore_snapshot(self, request: messages.RestoreSnapshot) -> Body:
        """Give a volume the content of its snapshot."""
        volume = parse_volume_id(request.volume)
        await self.copies.restore(volume, request.name)
        return self._found(volume)

    async def clone_volume(self, request: messages.CloneVolume) -> Body:
        """Make a volume from another one."""
        parse_volume_id(request.volume)
        return self._found(await self.copies.clone(request))

    async def open_volume_stream(self, request: messages.OpenVolumeStream) -> Body:
        """Export or import; answered at the end."""
        parse_volume_id(request.volume)
        return await self.transfers.stream(request)

    async def get_service(self, request: messages.GetVolumesService) -> Body:  # noqa: ARG002  # it has no fields
        """Which process this is."""
        return messages.VolumesService(instance=self.instance)

    async def check_volumes(self, request: messages.CheckVolumes) -> Body:
        """Whether a job could have these."""
        self.uses.check(request)
        return messages.VolumesChecked()

    async def prepare_volumes(self, request: messages.PrepareVolumes) -> Body:
        """Give volumes to a job."""
        return messages.VolumesPrepared(volumes=await self.uses.prepare(request))

    async def release_volumes(self, request: messages.ReleaseVolumes) -> Body:
        """Take them back."""
        await self.uses.release(request)
        return messages.VolumesReleased()

    async def sync_volumes(self, request: messages.SyncVolumes) -> Body:
        """Take back what jobs have that are no more."""
        await self.uses.sync(request)
        return messages.VolumesReleased()

    def _visible(self, request: messages.GetVolume) -> Volume:
        """By name among the owner's, else by id; of what the asker may not see he learns nothing."""
        reference = parse_name(request.volume, "volume")  # every id has the form of a name
        volume = self.records.named(request.owner, reference) or self._by_id(reference)
        if volume is None or request.visible_owner not in (None, volume.record.owner):
            raise no_volume(reference)
        return volume

    def _by_id(self, reference: str) -> Volume | None:
        try:
            return self.records.get(parse_volume_id(reference))
        except JobletError:
            return None

    def _found(self, volume: VolumeId) -> messages.VolumeFound:
        return messages.VolumeFound(volume=self._shown(self.records.get(volume)))

    def _shown(self, volume: Volume) -> VolumeRecord:
        return self.gauges.shown(volume.record, snapshots=len(self.records.snapshots(volume.id)))
