"""What clock.py has seen, kept in a file among the logs, so that a restart of the service does not forget it."""

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec
import structlog

from services.persist.clock import Watched
from services.persist.disk import directory_of, remove_file, stored_file

log = structlog.get_logger(__name__)

CLOCK_FILE: Final = ".clock.json"
_UNFINISHED: Final = ".clock.json.new"
_BYTES_MAX: Final = 4096


def load(logs: Path) -> Watched | None:
    """What was kept; None when there is nothing, or nothing sensible."""
    try:
        with directory_of(logs) as directory, stored_file(directory, CLOCK_FILE) as descriptor:
            return msgspec.json.decode(os.pread(descriptor, _BYTES_MAX, 0), type=Watched)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as cause:
        log.warning("what was known of the clock is lost", why=str(cause))
        return None


def save(logs: Path, watched: Watched) -> None:
    """Keep it. On failure it is logged, and what was kept before stays: a full disk is no reason to stop."""
    with contextlib.suppress(FileNotFoundError), directory_of(logs) as directory:
        try:
            with stored_file(directory, _UNFINISHED, flags=os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
                os.write(descriptor, msgspec.json.encode(watched))
            os.rename(_UNFINISHED, CLOCK_FILE, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as cause:
            log.warning("what is known of the clock is not kept", why=str(cause))
            with contextlib.suppress(OSError):
                remove_file(directory, _UNFINISHED)
