"""A job that has something to lose: secrets in memory, files, keys, queues and sockets. It says what it has and waits.

Arguments: a word that names its things, and how long to wait in seconds.
"""

import ctypes
import json
import os
import socket
import sys
import time
from pathlib import Path

from tests.security.probes.prelude import LIBC, call, outcome

NAME = sys.argv[2]
USER_KEYRING, SET_TIMEOUT = -4, 15
KEY_S = 60


def make_key() -> None:
    key = call("add_key", b"user", NAME.encode(), b"secret", 6, USER_KEYRING)
    call("keyctl", SET_TIMEOUT, key, KEY_S)


def make_segment() -> None:
    if LIBC.shmget(int(NAME, 16), 4096, 0o1666) == -1:
        raise OSError(ctypes.get_errno(), "shmget")


def make_queue() -> None:
    if LIBC.mq_open(f"/{NAME}".encode(), os.O_RDWR | os.O_CREAT, 0o666, None) == -1:
        raise OSError(ctypes.get_errno(), "mq_open")


def listen() -> None:
    listener.bind(f"\0{NAME}")
    listener.listen()


listener = socket.socket(socket.AF_UNIX)
made = {
    "key": outcome(make_key),
    "segment": outcome(make_segment),
    "queue": outcome(make_queue),
    "abstract": outcome(listen),
    "shm": outcome(lambda: Path(f"/dev/shm/{NAME}").write_text("secret")),
    "tmp": outcome(lambda: Path(f"/tmp/{NAME}").write_text("secret")),
}
for path in (f"/dev/shm/{NAME}", f"/tmp/{NAME}"):
    os.chmod(path, 0o666)
print(json.dumps(made), flush=True)
time.sleep(float(sys.argv[3]))
