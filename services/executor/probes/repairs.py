"""Why a namespace or another kernel feature is refused, and the repair: rules over what surrounds this process. Pure.

Here but for `read_surroundings`, which reads. References: user_namespaces(7), proc_pid_status(5),
Documentation/admin-guide/sysctl/user.rst, Documentation/admin-guide/LSM/apparmor.rst.
"""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from services.executor.probes.attempts import Failure

_NAMES: Final = {"mount": "mnt"}
"""Where the word of the kernel for a namespace is not ours."""

SYSCTLS: Final = (
    *(f"user/max_{kind}_namespaces" for kind in ("mnt", "pid", "ipc", "uts", "cgroup", "net", "user")),
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
)

ENOUGH_NAMESPACES: Final = 15_000
_APPARMOR: Final = (
    "AppArmor keeps user namespaces from ordinary programs: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0,"
    " or give the interpreter that runs joblet a profile with the rule userns"
)
_CONTAINER: Final = (
    "a system call filter around joblet refuses it, as container managers set one: run the container with"
    " --security-opt seccomp=unconfined"
)
_MASKED_PROC: Final = (
    "a part of /proc is covered, as in containers, and so no job can have a /proc of its own: run the container with"
    " --security-opt systempaths=unconfined"
)


class Surroundings(NamedTuple):
    """What decides over namespaces, beside the kernel's version; and what runs when a job crashes."""

    root: bool
    sysctls: Mapping[str, str]  # those of SYSCTLS that there are
    filtered: bool  # this process lives behind a system call filter
    namespaces: frozenset[str]  # words that are in HostFacts.namespaces
    core_handler: str  # the program that the kernel starts for a crash, as the host's root; "": none


def read_surroundings(*, root: bool, namespaces: frozenset[str]) -> Surroundings:
    """As found now."""
    sysctls = {name: text for name in SYSCTLS if (text := _read(f"/proc/sys/{name}"))}
    filtered = "\nSeccomp:\t2" in _read("/proc/self/status")
    pattern = _read("/proc/sys/kernel/core_pattern")
    handler = pattern[1:].split(" ")[0] if pattern.startswith("|") else ""
    return Surroundings(root, sysctls, filtered, namespaces, handler)


def namespace_repair(word: str, failure: Failure, around: Surroundings) -> str:
    """What to do about a namespace that cannot be had; "" where nobody knows."""
    kind = _NAMES.get(word, word)
    if word not in around.namespaces:
        return f"this kernel was built without {word} namespaces"
    for each in dict.fromkeys((kind, "user")) if not around.root or word == "user" else (kind,):
        if around.sysctls.get(f"user/max_{each}_namespaces") == "0":
            return f"sysctl -w user.max_{each}_namespaces={ENOUGH_NAMESPACES}"
    match failure.number:
        case errno.ENOSPC | errno.EUSERS:
            return f"too many are in use: sysctl -w user.max_{kind}_namespaces={ENOUGH_NAMESPACES}"
        case errno.ENOSYS:
            return _CONTAINER if around.filtered else "use Linux 5.14 or newer"
        case errno.EPERM | errno.EACCES:
            return _not_permitted(word, failure, around)
        case _:
            return ""


def _not_permitted(word: str, failure: Failure, around: Surroundings) -> str:
    if around.sysctls.get("kernel/apparmor_restrict_unprivileged_userns") == "1" and (
        not around.root or word == "user"
    ):
        return _APPARMOR
    if around.sysctls.get("kernel/unprivileged_userns_clone") == "0" and not around.root:
        return "sysctl -w kernel.unprivileged_userns_clone=1"
    if word == "pid" and failure.text.startswith("mount"):
        return _MASKED_PROC
    if around.filtered:
        return _CONTAINER
    if around.root:
        return "this root lacks CAP_SYS_ADMIN, CAP_SETUID or CAP_SETGID: give them to the container or the unit"
    return "run the node as root, or let ordinary users make user namespaces"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
