"""Exit codes of the command lines, and how a job's end becomes one.

Here: the table reason → exit code, and the rule for attached jobs. Not here: the text of errors (`errors.py`).
Codes above 128 follow the shell: 128 + n for an end by signal n (sh(1p), "Exit Status for Commands").
"""

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from common.errors import Reason

if TYPE_CHECKING:
    from proto.joblet.v1 import job_pb2

SIGNAL_BASE: Final = 128


class Exit(IntEnum):
    """What a command exits with when it does not exit as a job did."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNAVAILABLE = 5
    INTERRUPTED = 130  # 128 + SIGINT
    BROKEN_PIPE = 141  # 128 + SIGPIPE


EXIT_OF_REASON: Final = {
    Reason.INVALID: Exit.USAGE,
    Reason.UNAUTHENTICATED: Exit.REFUSED,
    Reason.DENIED: Exit.REFUSED,
    Reason.NOT_FOUND: Exit.NOT_FOUND,
    Reason.EXISTS: Exit.REFUSED,
    Reason.PRECONDITION: Exit.REFUSED,
    Reason.EXHAUSTED: Exit.REFUSED,
    Reason.UNAVAILABLE: Exit.UNAVAILABLE,
    Reason.DEADLINE: Exit.UNAVAILABLE,
    Reason.UNIMPLEMENTED: Exit.REFUSED,
    Reason.DATA_LOSS: Exit.FAILURE,
    Reason.INTERNAL: Exit.FAILURE,
}


def exit_of_job(job: "job_pb2.Job") -> int:
    """The exit code that stands for the end of `job`: its own, 128 + n for signal n, 1 when it has neither.

    It has neither when it could not be started, was canceled or was lost.
    """
    if job.HasField("exit_code"):
        return job.exit_code
    if job.HasField("signal"):
        return SIGNAL_BASE + job.signal
    return Exit.FAILURE
