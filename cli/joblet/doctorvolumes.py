"""The doctor's look at volumes: which ways to keep them this host has, and whether it can encrypt them.

Here: asking the volumes service's own program, which must know before it promises anything. A running node is not
asked: volumes are no part of NodeInfo, and trying them leaves nothing. Not here: the trying (`joblet-volumes --probe`),
printing (`doctor.py`). Jobs with default settings have no volumes, so nothing of this is ever unmet.
"""

from pathlib import Path
from typing import Final

from cli.joblet.doctorprobe import probed
from common.errors import JobletError
from common.messages.jobs import Capability
from common.messages.topics import Service

_UNKNOWN: Final = "volumes"


def volume_rows(base: Path, config: Path | None) -> tuple[Capability, ...]:
    """One row for each way. Never raises: when the program cannot tell, that is the row."""
    try:
        return probed(Service.VOLUMES, base, config, kind=tuple[Capability, ...])
    except JobletError as error:
        return (Capability(name=_UNKNOWN, level="unknown", detail=str(error)),)
