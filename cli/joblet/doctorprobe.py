"""A service's program, started by the doctor for its `--probe` alone, as whoever runs the doctor.

Here: starting it, and decoding what it prints. Not here: what is asked of which (`doctor.py`, `doctorvolumes.py`).
"""

import subprocess
import sys
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cli.client.escape import escape
from cli.joblet.service import program
from common.errors import JobletError, Reason
from common.messages.topics import Service

TIMEOUT_S: Final = 60.0

Found = TypeVar("Found")


def probed(service: Service, base: Path, config: Path | None, *, kind: type[Found]) -> Found:
    """What it finds, as a `kind`; its warnings go to our stderr. Raises JobletError."""
    command = [*program(service), "--probe", "--base-dir", str(base)]
    command += ["--config", str(config)] if config else []
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise JobletError(Reason.UNAVAILABLE, f"{command[0]} cannot be run: {cause}") from cause
    errors = done.stderr.decode("utf-8", "replace")
    if done.returncode != 0:
        last = errors.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise JobletError(Reason.PRECONDITION, last[0])
    sys.stderr.write(escape(errors))
    try:
        return msgspec.json.decode(done.stdout, type=kind)
    except msgspec.DecodeError as cause:
        raise JobletError(Reason.INTERNAL, f"{command[0]} --probe printed no facts: {cause}") from cause
