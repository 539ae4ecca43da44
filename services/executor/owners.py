"""Which uids an owner's jobs run as: a range of 65,536 for each owner, given at first sight and never reused.

Files on a volume keep their owner from job to job, and one owner's jobs cannot read another's.
"""

from services.executor.identity import JOB_UID, RANGE_IDS, JobIdentity
from services.executor.job_store import JobStore


class Owners:
    """Ranges of all owners ever seen."""

    def __init__(self, store: JobStore, *, uid_first: int) -> None:
        self._store = store
        self._uid_first = uid_first

    def identity_of(self, owner: str) -> JobIdentity:
        """Whom the owner's jobs are; durable when this returns. Raises EXHAUSTED when every range is taken."""
        first = self._uid_first + RANGE_IDS * self._store.owner_number(owner)
        return JobIdentity(first + JOB_UID, first + JOB_UID, first)
