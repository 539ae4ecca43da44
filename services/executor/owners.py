"""Which uids an owner's jobs run as: a range of 65,536 for each owner, given at first sight and never reused.

Files on a volume keep their owner from job to job, and one owner's jobs cannot read another's.
"""

from typing import Final, NamedTuple

from services.executor.job_store import JobStore

RANGE_UIDS: Final = 65_536
JOB_UID_IN_RANGE: Final = 1000


class UidRange(NamedTuple):
    """The uids and gids of one owner, on the host: `first` to `first` + 65,535."""

    first: int

    @property
    def job_uid(self) -> int:
        """The uid and gid of the owner's jobs, on the host."""
        return self.first + JOB_UID_IN_RANGE


class Owners:
    """Ranges of all owners ever seen."""

    def __init__(self, store: JobStore, *, uid_first: int) -> None:
        self._store = store
        self._uid_first = uid_first

    def range_of(self, owner: str) -> UidRange:
        """The owner's range; durable when this returns. Raises EXHAUSTED when every range is taken."""
        return UidRange(self._uid_first + RANGE_UIDS * self._store.owner_number(owner))
