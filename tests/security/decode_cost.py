"""What it costs to decode a payload: a small process that forks one more for each payload and tells what became of it.

Belongs here: `Decoder`, and the process behind it (`python -m tests.security.decode_cost`). Does not belong here:
payloads and bounds. The process has no threads, so that forking it is safe, whatever the test process holds.

Peak memory is VmHWM of /proc/self/status, set back before by writing 5 to /proc/self/clear_refs (proc(5)). ru_maxrss
would not do: it is inherited from the parent.
"""

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgpack

from common.bus import codec
from common.messages.topics import ENDPOINTS, Endpoint

NAIVE: Final = "naive"
"""Stands for an endpoint: unpack into maps and lists, without limits, as a naive receiver would."""
_HEAD: Final = struct.Struct("<HI")


class Cost(NamedTuple):
    """What decoding one payload took. `cause` is that of the refusal, or "accepted", or "raised …"."""

    cause: str
    growth_bytes: int
    seconds: float  # of processor time


class Decoder:
    """The process, as its user sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def cost(self, payload: bytes, endpoint: Endpoint | None) -> Cost:
        """Decode `payload` as a message of `endpoint`; None: as a naive receiver would."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        name = (endpoint.file if endpoint is not None else NAIVE).encode()
        self._process.stdin.write(_HEAD.pack(len(name), len(payload)) + name)
        self._process.stdin.write(payload)
        self._process.stdin.flush()
        cause, growth_bytes, seconds = self._process.stdout.readline().decode().strip().split(";")
        return Cost(cause, int(growth_bytes), float(seconds))

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


def main() -> None:
    """One answer for each payload on stdin, until it ends."""
    decoders: dict[str, Callable[[bytes], object]] = {
        endpoint.file: lambda payload, endpoint=endpoint: codec.decode(payload, endpoint)  # type: ignore[misc]  # bound now
        for endpoint in ENDPOINTS
    }
    decoders[NAIVE] = lambda payload: msgpack.unpackb(payload, strict_map_key=False)
    while head := sys.stdin.buffer.read(_HEAD.size):
        name_length, length = _HEAD.unpack(head)
        name = sys.stdin.buffer.read(name_length).decode()
        payload = sys.stdin.buffer.read(length)
        child = os.fork()
        if child == 0:
            _decode(decoders[name], payload)
        _, status = os.waitpid(child, 0)
        if status != 0:
            os.write(1, f"raised the end of the process, wait status {status};0;0\n".encode())


def _decode(decode: Callable[[bytes], object], payload: bytes) -> None:
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _peak_bytes(), time.process_time()
    kept: object = None
    try:
        kept = decode(payload)
        cause = "accepted"
    except codec.RejectedMessage as rejected:
        cause = rejected.cause
    except BaseException as broken:  # noqa: BLE001  # a task boundary: the test judges
        cause = f"raised {type(broken).__name__}"
    seconds = time.process_time() - began
    os.write(1, f"{cause};{_peak_bytes() - before};{seconds}\n".encode())
    del kept
    os._exit(0)


def _peak_bytes() -> int:
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
