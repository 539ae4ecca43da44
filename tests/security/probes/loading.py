"""Probes as programs: a file of this folder behind the prelude, and the numbers of the system calls it makes.

Belongs here: how a probe gets into a job. Does not belong here: any attack.
"""

import functools
import json
from pathlib import Path
from typing import Any, Final

import pyseccomp

from tests.e2e.node import Node
from tests.security.attack import Attempt, python_in_job, python_unprotected

HERE: Final = Path(__file__).parent
_PRELUDE_IMPORT: Final = "from tests.security.probes.prelude import "
_NEWER: Final = {"statmount": 457, "listmount": 458}
"""Calls that libseccomp 2.5 does not know; from 424 on the numbers are the same everywhere."""
_NAMES: Final = (
    *("accept", "add_key", "bpf", "chroot", "clone", "clone3", "delete_module", "fsconfig", "fsmount", "fsopen"),
    *("fspick", "getpid", "init_module", "io_uring_setup", "ioprio_set", "kcmp", "kexec_load", "keyctl"),
    *("mount", "mount_setattr", "move_mount", "name_to_handle_at", "open_by_handle_at", "open_tree"),
    *("perf_event_open", "personality", "pidfd_getfd", "pidfd_open", "pidfd_send_signal", "pivot_root", "prctl"),
    *("process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "reboot", "request_key", "rt_sigqueueinfo"),
    *("sched_setattr", "setdomainname", "setns", "sethostname", "socket", "swapon", "syslog", "tgkill", "umount2"),
    *("unshare", "userfaultfd", "capset", "acct", "settimeofday", "fanotify_init", "kexec_file_load", "prlimit64"),
)


@functools.cache
def program(name: str) -> str:
    """The text of the probe `name` behind the prelude."""
    lines = (HERE / f"{name}.py").read_text(encoding="utf-8").splitlines()
    own = "\n".join(line for line in lines if not line.startswith(_PRELUDE_IMPORT))
    return f"{(HERE / 'prelude.py').read_text(encoding='utf-8')}\n{own}\n"


@functools.cache
def numbers() -> str:
    """System call numbers of this machine, as probes take them."""
    known = {name: int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)) for name in _NAMES}
    return json.dumps({name: number for name, number in known.items() if number >= 0} | _NEWER)


def probe_in_job(node: Node, name: str, *arguments: str, options: tuple[str, ...] = ()) -> Any:
    """What the probe saw inside a job."""
    return _seen(python_in_job(node, program(name), numbers(), *arguments, options=options))


def probe_unprotected(name: str, *arguments: str) -> Any:
    """What the same probe saw as root, without any protection."""
    return _seen(python_unprotected(program(name), numbers(), *arguments))


def _seen(attempt: Attempt) -> Any:
    assert attempt.code == 0, f"the probe itself failed: {attempt}"
    return attempt.seen
