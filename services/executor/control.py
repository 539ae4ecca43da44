"""What the executor tells a monitor: stop the job, space was freed. The wire is `launcher/commands.py`."""

import errno
import os
from pathlib import Path

from services.executor.launcher.commands import Command, Verb, encode_command
from services.executor.launcher.jobfiles import CONTROL


def send_stop(job_dir: Path, *, signal: int, grace_ms: int) -> bool:
    """Send `signal` to the job's main process group, and after the grace SIGKILL to all of the job.

    The monitor keeps the time, also when the executor dies meanwhile. Signal 9 kills all of the job at once. False: no
    monitor listens.
    """
    return _send(job_dir, Command(Verb.STOP, signal, grace_ms))


def send_space_freed(job_dir: Path) -> bool:
    """Tell that a part of the journal was given back. False: no monitor listens."""
    return _send(job_dir, Command(Verb.SPACE_FREED))


def _send(job_dir: Path, command: Command) -> bool:
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(job_dir / CONTROL, flags)
    except OSError as cause:
        if cause.errno in (errno.ENXIO, errno.ENOENT):  # nobody has it open for reading; it was never made
            return False
        raise
    try:
        os.write(descriptor, encode_command(command))
    except BlockingIOError:
        # 4,000 commands wait: the monitor is stopped or stuck. What is wanted of it is in the queue many times over.
        return True
    except BrokenPipeError:
        return False
    finally:
        os.close(descriptor)
    return True
