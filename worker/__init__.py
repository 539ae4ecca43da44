"""joblet's worker as a library: run isolated, limited jobs from your own program. docs/library.md tells how.

    from worker import Command, Worker

What is named here is the interface; everything else of this package may change. Importing starts nothing, and loads
neither gRPC nor ZeroMQ.
"""

from common.errors import JobletError, Reason
from common.identifiers import JobId
from common.messages.jobs import Capability, Network, OnFull, State
from common.messages.jobs import Limits as Resources
from common.records import Stream
from worker.values import Command, Job, Output, Status
from worker.worker import Worker

__all__ = [
    "Capability",
    "Command",
    "Job",
    "JobId",
    "JobletError",
    "Network",
    "OnFull",
    "Output",
    "Reason",
    "Resources",
    "State",
    "Status",
    "Stream",
    "Worker",
]
