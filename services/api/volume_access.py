"""Whether a caller may touch one volume. What he may not see does not exist for him.

Belongs here: from the name in a request to the volume's record, or the refusal. Not here: roles (`permissions.py`), and
jobs (`access.py`).
"""

from common.bus.requests import Asker
from common.errors import JobletError, Reason, not_found
from common.identifiers import VolumeId, parse_name
from common.messages import volumes
from services.api.calls import current
from services.api.permissions import Permission, Scope


def no_such_volume() -> JobletError:
    """The one refusal for a volume that does not exist and for one that the caller may not see.

    It does not repeat the name, so the two cannot be told apart by a single byte.
    """
    return not_found("no such volume", "rnx volume list --all shows the volumes that you may see")


def visible_owner() -> str | None:
    """Whose volumes the present caller sees: None means everybody's."""
    call = current()
    return None if call.scope(Permission.LIST_VOLUMES) is Scope.ANY else call.principal.name


class VolumeAccess:
    """Looks volumes up at the volumes service, with the eyes of the present caller."""

    def __init__(self, service: Asker) -> None:
        self._service = service

    async def volume(self, reference: str) -> volumes.VolumeRecord:
        """The volume of this name, or of this id, when the caller may do with it what his method does.

        Raises JobletError: INVALID for what can be no name, NOT_FOUND for a volume he may not see, DENIED for one that
        he may see but not use so, UNAVAILABLE when the volumes service does not answer.
        """
        call = current()
        call.object = parse_name(reference, "volume")
        record = await self._look_up(reference, visible_owner())
        call.object = record.name
        if call.scope(call.rule.permission) is not Scope.ANY and record.owner != call.principal.name:
            raise JobletError(
                Reason.DENIED,
                f"{call.principal.name} may not {call.rule.permission} of others",
                detail="ask the volume's owner, or an admin",
            )
        return record

    async def again(self, volume: VolumeId) -> volumes.VolumeRecord:
        """A volume that `volume` gave, as it is now."""
        return await self._look_up(volume, None)

    async def _look_up(self, reference: str, visible: str | None) -> volumes.VolumeRecord:
        asked = volumes.GetVolume(volume=reference, owner=current().principal.name, visible_owner=visible)
        try:
            return (await self._service.request(asked, volumes.VolumeFound)).volume
        except JobletError as error:
            if error.reason is Reason.NOT_FOUND:
                raise no_such_volume() from error
            raise
