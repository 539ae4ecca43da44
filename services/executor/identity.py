"""Whom a job is: its ids on the host, and its one id in its own user namespace. user_namespaces(7).

Not here: which range an owner has (`owners.py`). docs/adr/0013-user-namespaces.md gives the reasons.
"""

from typing import Final, NamedTuple

from services.executor.launcher.operations import USER_IDS

RANGE_IDS: Final = USER_IDS
"""Of one owner, and of a job's user namespace."""

JOB_UID: Final = 1000
"""The job's uid and gid in its user namespace, and their place in its owner's range."""


class JobIdentity(NamedTuple):
    """Whom the job is on the host. Itself it is always `JOB_UID`, in a user namespace of its own."""

    uid: int
    gid: int
    range_first: int | None
    """Least of the 65,536 ids of the job's owner, the job's root; None: rootless, one id is all there is."""

    @property
    def mount_owner(self) -> tuple[int, int]:
        """The job, as mounts made for it name it: they belong to the host, or rootless to the job's namespace."""
        return (JOB_UID, JOB_UID) if self.range_first is None else (self.uid, self.gid)

    @property
    def mount_root(self) -> int:
        """The job's root, likewise. Rootless there is none: what would be root's is the job's, on read-only mounts."""
        return JOB_UID if self.range_first is None else self.range_first
