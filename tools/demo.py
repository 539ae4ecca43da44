"""`make demo`: four services, real jobs, live output, limits, a crash, a restart, the stored log. Under two minutes.

Every command is shown as somebody would type it, with what it prints, and checked: the demo exits non-zero when a step
does not behave. Here: the story. Not here: how commands are run and shown (`session.py`).
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tools.session import Misbehaved, Session, alive, check, children_named, mentions, wait_until

READY_TIMEOUT_S: Final = 180
COUNT_TO: Final = 150
UPLOAD_BYTES: Final = 3 * 2**20

CONFIG: Final = """\
version: "3.0"
server: {nodeId: "demo", address: "127.0.0.1"}
joblet:
  base_dir: "%(base)s"
  cgroup_parent: "%(group)s"
  jobs: {metrics_interval_ms: 500}
"""


class Node:
    """The node of the demo: `joblet up` in a directory of its own."""

    def __init__(self, base: Path, session: Session) -> None:
        self.base = base
        self.log = base / "up.log"
        self._session = session
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        assert self._process is not None
        return self._process.pid

    def up(self) -> None:
        """Start it and wait for its one line."""
        self._session.typed("joblet", "up", "--port", "0")
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                self._session.command("joblet", "up", "--port", "0"), stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self._session.output(line)
        check(line.startswith("joblet ready: 127.0.0.1:"), f"joblet up is ready; its log ends:\n{self.tail()}")

    def down(self) -> None:
        """Stop it; jobs go on."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            status = self._process.wait(READY_TIMEOUT_S)
            check(status == 0, f"joblet up ends with 0, not {status}; its log ends:\n{self.tail()}")

    def kill_service(self, name: str) -> None:
        """Kill -9 one service, and wait until the supervisor has started another."""
        (pid,) = children_named(self.pid, f"joblet-{name}")
        self._session.show_typed(f"kill -9 $(pgrep joblet-{name})")
        os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: bool(children_named(self.pid, f"joblet-{name}")) and not alive(pid),
            what=f"joblet-{name} is started again",
        )

    def tail(self) -> str:
        """The end of the services' log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


def hello(session: Session) -> None:
    """Both streams and the exit code come back."""
    session.title("A job: its output on the streams it chose, its exit code as ours")
    result = session.run("rnx", "job", "run", "--", "sh", "-c", "echo out; echo err >&2; exit 7", exits=7)
    check((result.stdout, result.stderr) == ("out\n", "err\n"), "out on stdout, err on stderr")
    session.run("rnx", "job", "run", "--", "no-such-program", exits=1)
    session.run("rnx", "job", "run", "--", "sh", "-c", "id -u; hostname; echo /*; echo /proc/[0-9]*")


def live(session: Session) -> None:
    """A second client follows while the job runs."""
    session.title("Live output, followed by another client while the job runs")
    script = f"trap told=1 USR1; {count(12, '0.2')}; while [ -z $told ]; do sleep 0.1; done"
    job = session.run("rnx", "job", "run", "-d", "--", "sh", "-c", script).stdout.strip()
    follower = session.start("rnx", "--node", "reader", "job", "log", job)
    assert follower.stdout is not None
    first = follower.stdout.readline()
    state = session.run("rnx", "--json", "job", "status", job, show=False).stdout
    check('"running"' in state.lower(), "the first line arrives while the job still runs")
    pid = json.loads(state)["pid"]
    session.typed("kill", "-USR1", str(pid))
    os.kill(pid, signal.SIGUSR1)
    rest = follower.stdout.read()  # to the end of the job; communicate() would lose what is buffered already
    check(follower.wait(READY_TIMEOUT_S) == 0, "the follower ends with the job")
    session.output(first + rest)
    check((first + rest).split() == [str(n) for n in range(1, 13)], "the follower sees 1 to 12, once, in order")


def limits(session: Session) -> None:
    """Memory and processes."""
    session.title("Limits: memory, processes, time")
    session.run("rnx", "job", "run", "--name", "hog", "--max-memory", "32", "--", "tail", "/dev/zero", exits=137)
    job = session.run("rnx", "--json", "job", "list", "--limit", "1", show=False).stdout
    check('"oom_killed": true' in job or '"oom_killed":true' in job, "the record says that memory ran out")
    forks = "for i in 1 2 3 4 5 6 7 8; do sleep 60 & done; kill $(jobs -p); exit 3"
    result = session.run("rnx", "job", "run", "--pids", "5", "--", "sh", "-c", forks, exits=2)
    check("fork" in result.stderr, "the shell says that it cannot fork")
    session.run("rnx", "job", "run", "--timeout", "500ms", "--grace", "0s", "--", "sleep", "60", exits=137)


def upload(session: Session, work: Path) -> None:
    """A file goes there and is the same."""
    session.title("A file goes with the job")
    file = work / "data.bin"
    file.write_bytes(os.urandom(UPLOAD_BYTES))
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    session.typed("sha256sum", str(file))
    session.output(f"{expected}  {file}")
    result = session.run("rnx", "job", "run", "--upload", str(file), "--", "sha256sum", "data.bin")
    check(result.stdout.split()[0] == expected, "the job computes the same sum")


def volume(session: Session) -> None:
    """Kept from job to job, with a size that holds, and given to a job that runs already."""
    session.title("A volume: files stay from job to job, and the size holds")
    session.run("rnx", "volume", "create", "data", "--size=8MB")
    session.run("rnx", "job", "run", "--volume", "data", "--", "sh", "-c", "echo kept > /volumes/data/file")
    result = session.run("rnx", "job", "run", "--volume", "data:/in:ro", "--", "cat", "/in/file")
    check(result.stdout == "kept\n", "the next job finds the file")
    fill = "cat /dev/zero > /volumes/data/fill; stat -c %s /volumes/data/fill"
    result = session.run("rnx", "job", "run", "--volume", "data", "--", "sh", "-c", fill)
    check(0 < int(result.stdout) <= 8 * 2**20, "no more than 8 MiB fit")
    check("space" in result.stderr, "the job is told that there is no space left")
    wait = "echo waiting; until [ -d /volumes/data ]; do sleep 0.1; done; cat /volumes/data/file"
    job = session.run("rnx", "job", "run", "-d", "--", "sh", "-c", wait).stdout.strip()
    wait_until(lambda: printed(session, job) == "waiting\n", what="the job runs")
    session.run("rnx", "volume", "attach", "data", job, show=False)
    session.run("rnx", "job", "log", job)
    session.run("rnx", "volume", "list")
    session.run("rnx", "volume", "remove", "data")


def stop(session: Session) -> None:
    """What ignores SIGTERM is killed, with everything below it."""
    session.title("Stop: SIGTERM, a grace period, then everything of the job is killed")
    forever = "while :; do sleep 1; done"
    stubborn = f"trap '' TERM; setsid sh -c 'trap \"\" TERM; {forever}' & echo deaf; {forever}"
    job = session.run("rnx", "job", "run", "-d", "--", "sh", "-c", stubborn).stdout.strip()
    wait_until(lambda: printed(session, job) == "deaf\n", what="the job ignores SIGTERM")
    session.run("rnx", "job", "stop", job, "--grace", "1s", show=False)
    session.run("rnx", "job", "wait", job, exits=137)
    session.run("rnx", "job", "status", job)
    session.say("whose jobs one may see is decided by the certificate; to this user the job does not exist:")
    session.run("rnx", "--node", "user", "job", "status", job, exits=3)


def survive(session: Session, node: Node) -> str:
    """A job goes on while services are killed and the whole node is restarted. Its id."""
    session.title("Services die, the job does not")
    job = session.run("rnx", "job", "run", "-d", "--name", "counter", "--", "sh", "-c", count(COUNT_TO, "0.1")).stdout
    job = job.strip()
    session.run("rnx", "job", "metrics", job, "--no-follow", show=False)
    for service in ("executor", "persist", "api"):
        node.kill_service(service)
        wait_until(lambda: answers(session), what="the node answers again")
    session.say("and now all of it: down, and up again on the same directory")
    session.typed("joblet", "down")
    node.down()
    time.sleep(1)  # the job goes on meanwhile: that is what is shown
    node.up()
    session.run("rnx", "job", "list", "--limit", "3")
    session.run("rnx", "job", "wait", job)
    session.run("rnx", "job", "metrics", job, "--no-follow", "--aggregate", "avg")
    return job


def stored(session: Session, node: Node, job: str) -> None:
    """The log is complete, by query and on disk."""
    session.title("The stored log: complete, in order, readable with zcat")
    result = session.run("rnx", "job", "log", job, "--no-follow", show=False)
    check(result.stdout.split() == [str(n) for n in range(1, COUNT_TO + 1)], f"1 to {COUNT_TO}, once, in order")
    session.say(f"{COUNT_TO} numbers, each once, in order")
    session.run("rnx", "job", "log", job, "--no-follow", "--filter", "99", "--timestamps")
    file = node.base / "logs" / job / "stdout.log.gz"
    wait_until(lambda: not (node.base / "jobs" / job).exists(), what="all of the log is stored")
    lines = session.run("zcat", str(file), show=False).stdout.splitlines()
    session.output("\n".join(lines[-2:]))
    check(len(lines) == COUNT_TO, f"zcat shows {COUNT_TO} lines")
    session.run("joblet", "verify", job)


def nothing_left(session: Session, node: Node, group: str) -> None:
    """Stop the node; nothing of it is left."""
    session.title("The end: nothing is left")
    session.run("rnx", "job", "list")
    session.typed("joblet", "down")
    node.down()
    wait_until(lambda: not mentions(node.base), what="no process and no mount of the node is left")
    wait_until(lambda: not groups_of_jobs(group), what="no control group of a job is left")
    for parent in parents_of_groups(group):
        parent.rmdir()  # the demo's own parent groups, empty; a node keeps its own for the next start
    session.say("no process, no mount, no control group")


def parents_of_groups(group: str) -> list[Path]:
    """The demo's own control groups, one in each tree."""
    walked = os.walk("/sys/fs/cgroup")  # which bears that groups of others come and go
    return [Path(at, name) for at, below, _ in walked for name in below if name.startswith(group)]


def groups_of_jobs(group: str) -> list[str]:
    """What is below them."""
    return [str(at) for parent in parents_of_groups(group) for at in parent.iterdir() if at.is_dir()]


def count(to: int, pause: str) -> str:
    """A shell program that prints 1 to `to` slowly."""
    return f"i=0; while [ $i -lt {to} ]; do i=$((i+1)); echo $i; sleep {pause}; done"


def printed(session: Session, job: str) -> str:
    """What a job has printed so far; not shown."""
    command = session.command("rnx", "job", "log", job, "--no-follow")
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def answers(session: Session) -> bool:
    """Whether the node answers a request now."""
    command = session.command("rnx", "--timeout", "20s", "job", "list", "--limit", "1")
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def tell(session: Session, node: Node, work: Path, group: str) -> None:
    """The whole story."""
    session.title("Start: certificates, configuration and four services, from nothing")
    node.up()
    hello(session)
    live(session)
    limits(session)
    upload(session, work)
    volume(session)
    stop(session)
    job = survive(session, node)
    stored(session, node, job)
    nothing_left(session, node, group)


def main() -> int:
    """Exit code 0 when every step behaved."""
    if os.geteuid() != 0:
        sys.stderr.write("the demo needs root: it makes namespaces, control groups and users. Try: sudo make demo\n")
        return 1
    started = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="joblet-demo-"))
    group = base.name
    (base / "joblet-config.yml").write_text(CONFIG % {"base": base, "group": group})
    options = {
        "rnx": ("--config", str(base / "rnx-config.yml")),
        "joblet": ("--base-dir", str(base)),
    }
    session = Session(Path(sys.executable).parent, options)
    node = Node(base, session)
    work = Path(tempfile.mkdtemp(prefix="joblet-demo-files-"))
    try:
        tell(session, node, work, group)
    except (Misbehaved, subprocess.TimeoutExpired) as failure:
        sys.stderr.write(f"\nTHE DEMO FAILED: {failure}\n\nThe services' log ends:\n{node.tail()}\n")
        return 1
    finally:
        node.down()
        shutil.rmtree(work)
        shutil.rmtree(base)
    session.title(f"Done in {time.monotonic() - started:.0f} s. Where to go on: README.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
