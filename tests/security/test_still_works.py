"""What must still work in a job, whatever is refused: the programs that people run. Issue 3, "What must hold".

Each test is one job with a table of small programs; each program's output is compared. What does not work is at the
end, with the words in which it is refused.
"""

import shutil
from pathlib import Path
from shlex import quote
from typing import Any, Final

import pytest

from tests.e2e.node import Node
from tests.security.attack import in_job
from tests.soak.holding import probe

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

SHELL: Final[dict[str, tuple[str, str]]] = {
    "pipeline": ("printf 'b\\na\\nb\\n' | sort | uniq -c | awk '{print $1 $2}' | xargs", "1a 2b"),
    "substitution": ("echo $(expr 6 \\* 7)", "42"),
    "here document": ("cat <<END\nhere\nEND", "here"),
    "background and wait": ("(sleep 0.05; exit 7) & wait $!; echo $?", "7"),
    "trap": ("trap 'echo caught' USR1; kill -USR1 $$", "caught"),
    "timeout": ("timeout 0.1 sleep 10; echo $?", "124"),
    "killed child": ("sh -c 'kill -9 $$' || echo $?", "137"),
    "fifo": ("mkfifo /tmp/f; echo through >/tmp/f & cat /tmp/f", "through"),
    "links": ("echo x >/tmp/a; ln /tmp/a /tmp/b; ln -s b /tmp/c; cat /tmp/c; stat -c %h /tmp/a", "x\n2"),
    "temporary file": ("t=$(mktemp); echo there >$t; cat $t; rm $t", "there"),
    "find and grep": ("mkdir -p /work/d/e; echo needle >/work/d/e/f; grep -rl needle /work", "/work/d/e/f"),
    "identity": ("id -un; id -u; echo ~; pwd; hostname | wc -c", "job\n1000\n/work\n/work\n13"),
    "processes": ("cat /proc/1/comm; grep -c ^Pid: /proc/$$/status; ls /proc/self/task | wc -l", "init\n1\n1"),
    "terminal": (
        "test -t 0 || echo none; echo typed | script -qc 'tty >/dev/null && cat' /dev/null | tr -d '\\r' | tail -1",
        "none\ntyped",
    ),
    "time zone": ("TZ=Asia/Tokyo date -d @0 +%H", "09"),
    "locale": ("LC_ALL=C.UTF-8 locale charmap; printf 'ä' | wc -m", "UTF-8\n1"),
    "tar and gzip": ("cd /tmp && echo packed >p && tar czf p.tgz p && rm p && tar xzf p.tgz && cat p", "packed"),
    "checksums": ("printf abc | sha256sum | cut -c1-8", "ba7816bf"),
    "execute from /tmp and /work": (
        "for d in /tmp /work; do printf '#!/bin/sh\\necho ran\\n' >$d/x; chmod +x $d/x; $d/x; done",
        "ran\nran",
    ),
    "devices": (
        "head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo x >/dev/full || echo full",
        "4\n4\nfull",
    ),
    "umask and chmod": ("umask; touch /tmp/m; chmod 751 /tmp/m; stat -c %a /tmp/m", "0022\n751"),
    "large file and sparse": ("truncate -s 1G /tmp/s; stat -c %s /tmp/s; rm /tmp/s", "1073741824"),
    "nice": ("nice -n 5 nice", "5"),
    "ulimit": ("ulimit -n; ulimit -c", "1024\n0"),
    "no standard input": ("cat; echo end", "end"),
}


@pytest.mark.requirement("T.5")
def test_shells_and_their_programs(node: Node) -> None:
    """Every entry of the table prints what it prints anywhere."""
    marker = "----"
    script = "\n".join(
        f"echo {marker}{name}\nsh -c {quote(program)} 2>/dev/null" for name, (program, _) in SHELL.items()
    )
    parts = in_job(node, "sh", "-c", script).stdout.decode().split(marker)[1:]
    seen = {name: output.strip() for name, _, output in (part.partition("\n") for part in parts)}
    assert seen == {name: expected for name, (_, expected) in SHELL.items()}


def test_job_control_of_bash(node: Node) -> None:
    """With set -m a shell stops, continues and lists its jobs, on a terminal and without one."""
    stopped = 'sleep 100 & kill -STOP %1; until [ -n "$(jobs -s)" ]; do sleep 0.01; done'
    script = f"set -m; {stopped}; jobs; bg %1 >/dev/null; kill %1; wait %1; echo $?"
    lines = in_job(node, "bash", "-c", script).stdout.decode().splitlines()
    assert "Stopped" in lines[0]
    assert lines[-1] == "143"


PYTHON_TABLE: Final = r"""
import concurrent.futures, ctypes, fcntl, functools, mmap, multiprocessing, multiprocessing.shared_memory, os, pty
import resource, select, socket, sqlite3, ssl, subprocess, tempfile, threading, urllib.request
import http.server

def threads():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return sum(pool.map(lambda n: n * n, range(100)))
def processes():
    with multiprocessing.get_context("fork").Pool(4) as pool:
        return sum(pool.map(abs, range(-50, 50)))
def locks():
    context = multiprocessing.get_context("fork")
    counter, lock = context.Value("i", 0), context.Lock()
    def work():
        for _ in range(100):
            with lock:
                counter.value += 1
    workers = [context.Process(target=work) for _ in range(4)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    return counter.value
def shared_memory():
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
    memory.buf[:5] = b"hello"
    again = multiprocessing.shared_memory.SharedMemory(memory.name)
    found = bytes(again.buf[:5]).decode()
    again.close(); memory.close(); memory.unlink()
    return found
def subprocesses():
    return subprocess.run(["tr", "a", "b"], input=b"aaa", capture_output=True).stdout.decode()
def terminal():
    pid, master = pty.fork()
    if pid == 0:
        os.execvp("stty", ["stty", "size"])
    said = os.read(master, 100).decode().strip()
    os.waitpid(pid, 0)
    return said
def web():
    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers(); self.wfile.write(b"hello " + self.path.encode())
        def log_message(self, *arguments): pass
    answers = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "[::1]")):
        class Server(http.server.ThreadingHTTPServer):
            address_family = family
        with Server((address.strip("[]"), 0), Hello) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            answers.append(urllib.request.urlopen("http://%s:%d/x" % (address, server.server_port)).read().decode())
            server.shutdown()
    return answers
def unix_socket():
    server = socket.socket(socket.AF_UNIX)
    server.bind("/tmp/s"); server.listen()
    client = socket.socket(socket.AF_UNIX); client.connect("/tmp/s")
    peer, _ = server.accept()
    passed = socket.socketpair()
    socket.send_fds(client, [b"x"], [passed[0].fileno()])
    _, received, _, _ = socket.recv_fds(peer, 1, 1)
    os.write(received[0], b"by descriptor")
    return passed[1].recv(20).decode()
def names():
    return socket.gethostbyname("localhost"), socket.gethostbyname(socket.gethostname())
def no_names():
    began = time.monotonic()
    try:
        socket.getaddrinfo("example.invalid", 80)
    except socket.gaierror:
        return time.monotonic() - began < 5
def interfaces():
    return [name for _, name in socket.if_nameindex()]
def inotify():
    libc = ctypes.CDLL(None)
    notify = libc.inotify_init1(0)
    libc.inotify_add_watch(notify, b"/tmp", 0x100)
    open("/tmp/new", "w").close()
    return b"new" in os.read(notify, 4096)
def direct():
    data = mmap.mmap(-1, 4096)
    file = os.open("/tmp/direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    return os.write(file, data)
def database():
    with sqlite3.connect("/tmp/db") as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table t (n)")
        connection.executemany("insert into t values (?)", [(n,) for n in range(10)])
        return connection.execute("select sum(n) from t").fetchone()[0]
def file_locks():
    with open("/tmp/lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX); fcntl.lockf(file, fcntl.LOCK_EX)
        return True
def certificates():
    return len(ssl.create_default_context().get_ca_certs()) >= 0
def signals():
    caught = []
    signal.signal(signal.SIGALRM, lambda number, frame: caught.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    while not caught:
        time.sleep(0.01)
    child = os.fork()
    if child == 0:
        signal.pause()
    descriptor = os.pidfd_open(child)
    signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
def own_limits():
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
def memory():
    protected = mmap.mmap(-1, 1 << 20, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    protected.madvise(mmap.MADV_DONTNEED)
    file = os.memfd_create("own")
    return os.write(file, b"four")
def cpus():
    return len(os.sched_getaffinity(0)) == os.cpu_count() and min(os.sched_getaffinity(0)) >= 0
def temporary():
    with tempfile.TemporaryDirectory() as name:
        return name.startswith("/tmp/")
found = {}
for way in (threads, processes, locks, shared_memory, subprocesses, terminal, web, unix_socket, names, no_names,
            interfaces, inotify, direct, database, file_locks, certificates, signals, own_limits, memory, cpus,
            temporary):
    try:
        found[way.__name__] = way()
    except Exception as error:
        found[way.__name__] = repr(error)
say(found=found)
"""
PYTHON_EXPECTED: Final[dict[str, Any]] = {
    "threads": 328350,
    "processes": 2500,
    "locks": 400,
    "shared_memory": "hello",
    "subprocesses": "bbb",
    "terminal": "0 0",
    "web": ["hello /x", "hello /x"],
    "unix_socket": "by descriptor",
    "names": ["127.0.0.1", "127.0.1.1"],
    "no_names": True,
    "interfaces": ["lo"],
    "inotify": True,
    "direct": 4096,
    "database": 45,
    "file_locks": True,
    "certificates": True,
    "signals": -15,
    "own_limits": 4096,
    "memory": 4,
    "cpus": True,
    "temporary": True,
}


@pytest.mark.requirement("T.5")
def test_python_and_what_it_asks_of_the_system(node: Node) -> None:
    """Threads, processes, shared memory, terminals, servers on loopback, databases, signals: as anywhere."""
    assert probe(node, PYTHON_TABLE).seen["found"] == PYTHON_EXPECTED


COMPILE: Final = r"""
set -e
cd /tmp
cat >hello.c <<'END'
#include <stdio.h>
#include <pthread.h>
static void *work(void *text) { puts(text); return NULL; }
int main(void) { pthread_t thread; pthread_create(&thread, NULL, work, "hello"); return pthread_join(thread, NULL); }
END
gcc -O1 -pthread -o hello hello.c
./hello
"""


@needs_gcc
def test_a_compiler(node: Node) -> None:
    """Compile, link and run a program with a thread."""
    done = in_job(node, "sh", "-c", COMPILE)
    assert (done.stdout, done.code) == (b"hello\n", 0), done.stderr


def test_other_languages_and_tools_where_the_host_has_them(node: Node) -> None:
    """Perl forks and opens pipes; git makes a repository and a commit, as a user whose name it can find."""
    tools = {
        "perl": ('perl -e \'open(my $p, "-|", "echo piped"); print <$p>; exit(fork() ? 0 : 0)\'', b"piped\n"),
        "git": (
            "cd /tmp; export GIT_COMMITTER_EMAIL=j@x GIT_AUTHOR_EMAIL=j@x; git init -q r; cd r; echo 1 >f; git add f;"
            " git commit -qm first; git log --format='%s %an'",
            b"first job\n",
        ),
    }
    for tool, (script, expected) in tools.items():
        found = shutil.which(tool, path="/usr/local/bin:/usr/bin")
        if found and Path(found).resolve().is_relative_to("/usr"):
            assert in_job(node, "sh", "-c", script).stdout == expected, tool


SORT: Final = """
padding=$(head -c 190 /dev/zero | tr '\\0' x)
mkfifo /tmp/copy
wc -c </tmp/copy &
seq 1 200000 | rev | sed "s/$/$padding/" | sort -S 4M --compress-program=gzip -T /tmp | tee /tmp/copy | sort -c -S 4M
echo "sorted $?"
wait
"""


def test_sort_of_more_than_the_memory_limit(node: Node) -> None:
    """39 MB are sorted in 4 MB of buffer by a job of 32 MB.

    /tmp is memory and counts. So what is larger than the limit cannot lie there as it is: it comes through a pipe, and
    sort(1) compresses its temporary files.
    """
    done = in_job(node, "sh", "-c", SORT, options=("--max-memory", "32"))
    assert sorted(done.stdout.splitlines()) == [b"39288895", b"sorted 0"], done.stderr


def test_files_larger_than_the_memory_limit_can_be_read(node: Node) -> None:
    """The page cache of what is read counts, and is given back when the limit is near: reading ends no job."""
    read = "find /usr/lib -type f -size +64k | head -n 2000 | xargs cat | head -c 200000000 | wc -c"
    done = in_job(node, "sh", "-c", read, options=("--max-memory", "32"))
    assert done.code == 0, done.stderr
    assert int(done.stdout) > 64 * 2**20


REFUSED: Final = r"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(number, *arguments) < 0 else "ok"
say(ptrace=call(101, 0, 0, 0, 0), unshare=call(272, 0x10000000), io_uring=call(425, 1, None),
    keyctl=call(250, 0, -3, 0), perf=call(298, None, 0, -1, -1, 0), chroot=call(161, b"/tmp"),
    mount=call(165, 0, 0, 0, 0, 0), clone3=call(435, None, 0))
"""


def test_what_does_not_work_is_refused_in_the_documented_way(node: Node) -> None:
    """Debuggers, namespaces, io_uring, keys, profilers, chroot, mounts: EPERM. clone3: ENOSYS, which libc expects."""
    seen = probe(node, REFUSED).seen
    del seen["job"]
    assert seen.pop("clone3") == "ENOSYS"
    assert set(seen.values()) == {"EPERM"}, seen
