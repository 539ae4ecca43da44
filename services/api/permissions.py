"""What a caller may do: one table from method to permission, one from role to what it is granted. Deny by default.

Belongs here: the two tables and the questions asked of them, pure. Does not belong here: who the caller is
(`identity.py`), and enforcement (`gate.py`, `access.py`). The tables are architecture.md §7 and docs/security.md.
"""

from collections.abc import Iterable
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from services.api.identity import Role


class Permission(StrEnum):
    """A kind of access. Which objects it reaches is a Scope."""

    RUN = "run jobs"
    CONTROL = "stop, cancel and delete jobs"
    READ = "see jobs, their output and their metrics"
    LIST_VOLUMES = "see volumes"
    CHANGE_VOLUMES = "create, attach and remove volumes"
    SEE_NODE = "see the node"
    MANAGE_NODE = "see and manage what the node stores"


class Scope(IntEnum):
    """How far a permission reaches; a larger one includes the smaller."""

    NONE = 0
    OWN = 1
    ANY = 2


class Rule(NamedTuple):
    """One row: what a method needs, and whether it holds one of the limited streams while it runs."""

    permission: Permission
    streams: bool = False


GRANTS: Final[dict[Role, dict[Permission, Scope]]] = {
    Role.ADMIN: dict.fromkeys(Permission, Scope.ANY),
    Role.WRITER: {
        Permission.RUN: Scope.OWN,
        Permission.CONTROL: Scope.ANY,
        Permission.READ: Scope.ANY,
        Permission.LIST_VOLUMES: Scope.OWN,
        Permission.CHANGE_VOLUMES: Scope.OWN,
        Permission.SEE_NODE: Scope.ANY,
    },
    Role.USER: {
        Permission.RUN: Scope.OWN,
        Permission.CONTROL: Scope.OWN,
        Permission.READ: Scope.OWN,
        Permission.LIST_VOLUMES: Scope.OWN,
        Permission.CHANGE_VOLUMES: Scope.OWN,
        Permission.SEE_NODE: Scope.ANY,
    },
    Role.READER: {
        Permission.READ: Scope.ANY,
        Permission.LIST_VOLUMES: Scope.OWN,
        Permission.SEE_NODE: Scope.ANY,
    },
}

_JOBS: Final = "/joblet.v1.JobService/"
_PERSIST: Final = "/joblet.v1.PersistService/"
_VOLUMES: Final = "/joblet.v1.VolumeService/"
_WORKER: Final = "/joblet.v1.WorkerService/"

RULES: Final[dict[str, Rule]] = {
    _JOBS + "RunJob": Rule(Permission.RUN),
    _JOBS + "PlanJob": Rule(Permission.RUN),
    _JOBS + "UploadFiles": Rule(Permission.RUN),
    _JOBS + "GetJob": Rule(Permission.READ),
    _JOBS + "ListJobs": Rule(Permission.READ),
    _JOBS + "StopJob": Rule(Permission.CONTROL),
    _JOBS + "CancelJob": Rule(Permission.CONTROL),
    _JOBS + "WaitJob": Rule(Permission.READ),
    _JOBS + "DeleteJob": Rule(Permission.CONTROL),
    _JOBS + "StreamLogs": Rule(Permission.READ, streams=True),
    _JOBS + "WatchJobs": Rule(Permission.READ, streams=True),
    _JOBS + "StreamMetrics": Rule(Permission.READ, streams=True),
    _PERSIST + "QueryLogs": Rule(Permission.READ, streams=True),
    _PERSIST + "QueryLogBatches": Rule(Permission.READ, streams=True),
    _PERSIST + "QueryMetrics": Rule(Permission.READ, streams=True),
    _PERSIST + "DeleteJobData": Rule(Permission.CONTROL),
    _PERSIST + "ApplyRetention": Rule(Permission.MANAGE_NODE, streams=True),
    _PERSIST + "GetStore": Rule(Permission.MANAGE_NODE),
    _PERSIST + "QueryAudit": Rule(Permission.MANAGE_NODE, streams=True),
    "/joblet.v1.NodeService/GetInfo": Rule(Permission.SEE_NODE),
    "/joblet.v1.NodeService/QueryAudit": Rule(Permission.MANAGE_NODE, streams=True),
    _WORKER + "Start": Rule(Permission.RUN),
    _WORKER + "Stop": Rule(Permission.CONTROL),
    _WORKER + "Query": Rule(Permission.READ),
    _WORKER + "Stream": Rule(Permission.READ, streams=True),
    _VOLUMES + "CreateVolume": Rule(Permission.CHANGE_VOLUMES),
    _VOLUMES + "ListVolumes": Rule(Permission.LIST_VOLUMES),
    _VOLUMES + "GetVolume": Rule(Permission.LIST_VOLUMES),
    _VOLUMES + "DeleteVolume": Rule(Permission.CHANGE_VOLUMES),
    _VOLUMES + "AttachVolume": Rule(Permission.CHANGE_VOLUMES),
    _VOLUMES + "DetachVolume": Rule(Permission.CHANGE_VOLUMES),
    _VOLUMES + "ResizeVolume": Rule(Permission.CHANGE_VOLUMES),
    _VOLUMES + "CreateSnapshot": Rule(Permission.CHANGE_VOLUMES),
    _VOLUMES + "ListSnapshots": Rule(Permission.LIST_VOLUMES),
    _VOLUMES + "DeleteSnapshot": Rule(Permission.CHANGE_VOLUMES),
    _VOLUMES + "RestoreSnapshot": Rule(Permission.CHANGE_VOLUMES),
    _VOLUMES + "CloneVolume": Rule(Permission.CHANGE_VOLUMES),
    _VOLUMES + "ExportVolume": Rule(Permission.CHANGE_VOLUMES, streams=True),
    _VOLUMES + "ImportVolume": Rule(Permission.CHANGE_VOLUMES, streams=True),
    "/grpc.health.v1.Health/Check": Rule(Permission.SEE_NODE),
    "/grpc.health.v1.Health/List": Rule(Permission.SEE_NODE),
    "/grpc.health.v1.Health/Watch": Rule(Permission.SEE_NODE, streams=True),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(Permission.SEE_NODE, streams=True),
}
"""By the exact name that gRPC hands over: paths arrive raw, so nothing is normalized and nothing else matches."""


def scope_of(roles: Iterable[Role], permission: Permission) -> Scope:
    """How far `roles` together reach with `permission`."""
    return max((GRANTS[role].get(permission, Scope.NONE) for role in roles), default=Scope.NONE)


def roles_with(permission: Permission) -> list[Role]:
    """Which roles have `permission` at all, in the order of the table."""
    return [role for role, granted in GRANTS.items() if granted.get(permission, Scope.NONE) > Scope.NONE]
