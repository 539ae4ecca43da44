"""What one job can learn of another: files, memory, IPC objects, sockets, processes. Issue 3, B15 and B20, C15.

The holder leaves a secret everywhere that a job can leave one, reads it back as a control, and stays. Then a job of
another owner and one of the same owner look for it. What could be told over the files of /usr is at the end.
"""

import os
import signal
import subprocess
from typing import Final

import pytest

from tests.e2e.node import Node
from tests.soak.holding import holding, probe

PLACES: Final = r"""
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
SECRET, KEY = "written by the first job", 0x4D1F
def checked(result):
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
class Message(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_long), ("text", ctypes.c_char * 64)]
def text(path):
    with open(path) as file:
        return file.read()
def memory():
    return ctypes.string_at(checked(libc.shmat(checked(libc.shmget(KEY, 0, 0)), None, 0o10000))).decode()
def message():
    found = Message()
    # Only a copy, by its place in the queue: MSG_COPY needs IPC_NOWAIT.
    flags = 0o4000 | 0o40000
    checked(libc.msgrcv(checked(libc.msgget(KEY, 0)), ctypes.byref(found), 64, ctypes.c_long(0), flags))
    return found.text.decode()
def posix_queue():
    queue = checked(libc.mq_open(b"/secret", os.O_RDWR))
    os.close(queue)
    return SECRET
def stream():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0secret")
        return client.recv(64).decode()
def loopback():
    with socket.create_connection(("127.0.0.1", 4444), 30) as client:
        return client.recv(64).decode()
def keyring():
    return str(checked(libc.syscall(249, b"user", b"secret", None, -2)))
WAYS = {
    "tmp": lambda: text("/tmp/secret"), "work": lambda: text("/work/secret"), "shm": lambda: text("/dev/shm/secret"),
    "descriptor": lambda: text("/proc/2/fd/9"), "root": lambda: text("/proc/2/root/tmp/secret"),
    "memory": memory, "message": message, "semaphore": lambda: checked(libc.semget(KEY, 0, 0)),
    "posix queue": posix_queue, "abstract socket": stream, "loopback": loopback, "keyring": keyring,
}
def look():
    found = {}
    for name, way in WAYS.items():
        try:
            found[name] = way()
        except OSError:
            continue
    return found
"""
HOLDER: Final = (
    PLACES
    + r"""
import threading
for path in ("/tmp/secret", "/work/secret", "/dev/shm/secret"):
    with open(path, "w") as file:
        file.write(SECRET)
os.dup2(os.open("/tmp/secret", os.O_RDONLY), 9)
shared = checked(libc.shmget(KEY, 4096, 0o1666))
ctypes.memmove(checked(libc.shmat(shared, None, 0)), SECRET.encode(), len(SECRET))
queue = checked(libc.msgget(KEY, 0o1666))
checked(libc.msgsnd(queue, ctypes.byref(Message(1, SECRET.encode())), 64, 0))
checked(libc.semget(KEY, 1, 0o1666))
checked(libc.mq_open(b"/secret", os.O_CREAT | os.O_RDWR, 0o666, None))
def serve(server):
    while True:
        connection, _ = server.accept()
        connection.sendall(SECRET.encode())
        connection.close()
unix = socket.socket(socket.AF_UNIX)
unix.bind("\0secret")
unix.listen()
inet = socket.create_server(("127.0.0.1", 4444))
for server in (unix, inet):
    threading.Thread(target=serve, args=(server,), daemon=True).start()
hold(found=look())
"""
)
CONTROL: Final = frozenset(
    ("tmp", "work", "shm", "descriptor", "root", "memory", "semaphore", "posix queue", "abstract socket", "loopback")
)
"""Found by the holder itself. A message can be copied only where the kernel has checkpoint and restore."""


@pytest.mark.threat("B20")
@pytest.mark.threat("B03")
@pytest.mark.threat("C15")
@pytest.mark.threat("A19")
def test_nothing_that_a_job_leaves_somewhere_is_seen_by_another(node: Node) -> None:
    """Files, memory, queues, semaphores, sockets and keys of a job are there for it alone."""
    with holding(node, HOLDER) as held:
        assert held.said["found"].keys() >= CONTROL
        assert "keyring" not in held.said["found"]
        for user in ("user", "default"):
            assert probe(node, PLACES + "say(found=look())", user=user).seen["found"] == {}, user


OWN_OUTPUT = r"""
import fcntl
def flags():
    return [fcntl.fcntl(number, fcntl.F_GETFL) & os.O_NONBLOCK for number in (0, 1, 2)]
first = flags()
for number in (0, 1, 2):
    fcntl.fcntl(number, fcntl.F_SETFL, os.O_NONBLOCK)
say(first=first, then=flags())
"""


@pytest.mark.threat("B15")
def test_flags_of_descriptors_are_not_shared_between_jobs(node: Node) -> None:
    """A job that makes its descriptors non-blocking changes nobody else's: the next one finds them as usual."""
    for _ in range(2):
        seen = probe(node, OWN_OUTPUT).seen
        assert seen["first"] == [0, 0, 0]
        assert 0 not in seen["then"]


TRY_LOCK: Final = r"""
import fcntl
def attempt(lock):
    with open("/usr/bin/tac", "rb") as file:
        try:
            lock(file)
        except OSError as error:
            return errno.errorcode[error.errno]
        return "taken"
def attempts():
    return dict(
        flock=attempt(lambda file: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)),
        record=attempt(lambda file: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)),
        lease=attempt(lambda file: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)),
    )
"""
TAKE_LOCK: Final = (
    TRY_LOCK
    + """
file = open("/usr/bin/tac", "rb")
fcntl.flock(file, fcntl.LOCK_EX)
say(**attempts())
hold()
"""
)
WATCH: Final = r"""
import ctypes, signal, struct
libc = ctypes.CDLL(None, use_errno=True)
IN_OPEN, IN_NONBLOCK = 0x20, 0o4000
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
notify = libc.inotify_init1(IN_NONBLOCK)
assert libc.inotify_add_watch(notify, b"/usr/bin", IN_OPEN) > 0
say()
signal.sigwait({signal.SIGUSR1})
os.close(os.open("/usr/bin/sort", os.O_RDONLY))
names, data = set(), os.read(notify, 65536)
while data:
    size = struct.unpack_from("iIII", data)[3]
    names.add(data[16:16 + size].rstrip(b"\0").decode())
    data = data[16 + size:]
say(names=sorted(names))
"""


@pytest.mark.threat("B20")
def test_locks_on_files_of_the_system_are_a_jobs_own(node: Node) -> None:
    """A lock on a program of /usr holds inside the job: neither another job nor the host finds it taken."""
    with holding(node, TAKE_LOCK) as held:
        assert held.said["flock"] == "EAGAIN", "inside it must hold"
        seen = probe(node, TRY_LOCK + "say(**attempts())", user="user").seen
        assert seen["flock"] == "taken"
        assert (seen["record"], seen["lease"]) == ("EBADF", "EACCES"), "they need a writable file, or one's own"
        assert subprocess.run(["flock", "--nonblock", "/usr/bin/tac", "true"], check=False).returncode == 0


@pytest.mark.threat("B20")
def test_what_others_open_is_not_seen(node: Node) -> None:
    """By inotify(7) a job sees which programs of /usr it opens itself, and none that another job or the host does."""
    with holding(node, WATCH) as held:
        assert probe(node, "os.close(os.open('/usr/bin/tac', os.O_RDONLY))", user="user").code == 0
        subprocess.run(["/usr/bin/tac", "/dev/null"], check=True)
        os.kill(node.wait_for_state(held.job, "running")["pid"], signal.SIGUSR1)
        names = held.next()["names"]
        assert "sort" in names, "its own must be seen"
        assert "tac" not in names
