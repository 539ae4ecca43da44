"""How a monitor, the job's init (PID 1) and the job's main process (PID 2) talk until the job runs, and afterwards.

     monitor                            init                                main
        │ clone3 (namespaces, cgroup) ───▶│
        │                                  │ joins its v1 groups
        │◀─ FAILED(step, path, errno) ─────│ that or the fork failed: it exits
        │                                  │ fork ──────────────────────────▶│ the preparation
        │  … here a spare waits until there is a job (docs/adr/0017-spare-sandboxes.md) …
        │── task, uploads (briefing) ──────┼─────────────────────────────────▶│
        │ makes the job's files            │                                  │ operations, limits, user namespace
        │◀─ FAILED(step, path, errno) ─────┼──────────────────────────────────│ any of it failed: it exits
        │◀─ READY (with its pid) ──────────┼──────────────────────────────────│ is in its user namespace
        │ writes uid_map and gid_map       │                                  │
        │── GO ────────────────────────────┼─────────────────────────────────▶│ waits for it (GO_MS_MAX)
        │                                  │                                  │ credentials, uploads, filter
        │◀─ EXEC (with its pid) ───────────┼──────────────────────────────────│ all is done but the exec
        │◀─ end of file ───────────────────┼──────────────────────────────────│ execve closed the report socket
        │ START record                     │                                  │ the job runs
        │── SIGNAL(number) ──────────────▶│ kill(main's group)               │
        │◀─ ENDED(wait status) ────────────│◀─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─┘
        │                                  │ exits, and the kernel kills what is left in the namespace
        ▼ reads the pipes to their end, EXIT record

A message is one packet: kind (1 byte), number (4 bytes, little-endian), and with FAILED a JSON array of a Failure.
Two SOCK_SEQPACKET pairs: the channel (monitor, init) and the report (monitor, main; init closes its copy). The briefing
is a stream: the task's length, with the uploads' descriptors, and the task; its end without a task ends main. From
there to the end of the report the monitor waits at most the task's `start_ms_max`, then it kills the namespace. An end
of the report without EXEC before it, or of init without ENDED, means that the process was killed.

GO says that the lock is held, the journal exists, the executor took the answer and the user namespace is mapped: before
it no instruction of the job runs. When the monitor dies init gets SIGKILL (PR_SET_PDEATHSIG), or main sees the report's
end where it waits for GO.
"""

import json
import socket
from enum import IntEnum
from typing import Final, NamedTuple

GO_MS_MAX: Final = 30_000
"""Longer than the executor waits for the answer (10 s): a slow disk gives the launch up there, not here."""
MESSAGE_BYTES_MAX: Final = 16 * 1024
_TEXT_CHARACTERS_MAX: Final = 2000
_NUMBER_BYTES: Final = 4
_TEXT_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 1 - _NUMBER_BYTES
_UNTOLD: Final = ("/proc/self/", "/sys/fs/cgroup/")


class Kind(IntEnum):
    """What a message says."""

    GO = 1
    FAILED = 2
    EXEC = 3
    SIGNAL = 4
    ENDED = 5
    READY = 6


_KINDS: Final = {int(kind): kind for kind in Kind}


class Failure(NamedTuple):
    """A step that could not be done, in words that reach the client."""

    step: str
    path: str
    errno: int
    message: str


class StepFailed(Exception):
    """Carries a Failure up to the process's entry."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Message(NamedTuple):
    """A received message: `number` of SIGNAL and ENDED, `failure` of FAILED."""

    kind: Kind
    number: int = 0
    failure: Failure | None = None


def failure_of(step: str, cause: BaseException, *, path: str = "") -> Failure:
    """`cause` as a Failure of `step`; an OSError brings errno and, unless `path` is given, its path.

    Clients read it: places of this process and of the node's control groups are left out.
    """
    if isinstance(cause, OSError):
        found = cause.filename if isinstance(cause.filename, str) else ""
        where = path or ("" if found.startswith(_UNTOLD) else found)
        return Failure(step, where, cause.errno or 0, cause.strerror or str(cause))
    return Failure(step, path, 0, f"{type(cause).__name__}: {cause}")


def encode(kind: Kind, number: int = 0, text: bytes = b"") -> bytes:
    """The packet of a message."""
    return bytes((kind,)) + number.to_bytes(_NUMBER_BYTES, "little") + text


def send(endpoint: socket.socket, kind: Kind, *, number: int = 0, failure: Failure | None = None) -> None:
    """Send one message. OSError: nobody is there to read it."""
    endpoint.sendall(encode(kind, number, b"" if failure is None else _encoded(failure)))


def _encoded(failure: Failure) -> bytes:
    """As much of a Failure as fits one packet. Names that are no text (a file's in an archive) are told in escapes."""
    step, path, message = (
        text.encode(errors="backslashreplace").decode() for text in (failure.step, failure.path, failure.message)
    )
    characters_max = _TEXT_CHARACTERS_MAX
    while True:
        texts = Failure(step[:characters_max], path[:characters_max], failure.errno, message[:characters_max])
        encoded = json.dumps(texts).encode()
        if len(encoded) <= _TEXT_BYTES_MAX:
            return encoded
        characters_max //= 2  # other alphabets than ours take up to twelve bytes for a character


def parse(packet: bytes) -> Message:
    """The message in a packet. ValueError: it is none."""
    number, text = int.from_bytes(packet[1 : 1 + _NUMBER_BYTES], "little"), packet[1 + _NUMBER_BYTES :]
    kind = _KINDS.get(packet[0])  # an enum's own look-up is done in Python, and is called for by every process
    if kind is None:
        raise ValueError(f"a message of kind {packet[0]}")
    return Message(kind, number, Failure(*json.loads(text)) if text else None)


GO_PACKET: Final = encode(Kind.GO)
