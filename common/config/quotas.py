"""How much one owner may use: the section `joblet.quotas`, checked beyond the numbers' ranges (`load.py`).

Not here: which of several values counts (`services/api/quotas.py`).
"""

from typing import Final

from common.config.settings import Quotas
from common.errors import invalid

OF_RUNNERS: Final = ("running_jobs", "queued_jobs", "upload_bytes")
"""Quotas of those who may run jobs. Others have none to be counted."""


def check_quotas(quotas: Quotas) -> None:
    """Refuse what would have no effect. Raises INVALID with the key."""
    for quota in OF_RUNNERS:
        value = getattr(quotas.roles.reader, quota)
        if value is not None:
            raise invalid(
                f"joblet.quotas.roles.reader.{quota} is {value}", "readers run no jobs and upload nothing: leave it out"
            )
