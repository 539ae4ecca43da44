"""Who the unprivileged services are, which directories are whose, and giving root up for good.

Here: choosing uids, making directories with the modes of common/config/layout.py, and the drop with its proof. Not
here: jobs' uids (`services/executor`), and the calls themselves (`prctl.py`). credentials(7), capabilities(7).

An account that does not exist is no obstacle: an unused system uid stands in, and the owner of the directories that
it wrote makes it the same one after the next start. docs/adr/0011-service-users.md tells why.
"""

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from common.config.layout import Layout
from common.config.settings import DEFAULT_BASE_DIR, Users
from common.errors import JobletError, Reason, invalid, precondition
from common.prctl import forbid_dumping

SYSTEM_ID_FIRST: Final = 100
SYSTEM_ID_LAST: Final = 999


def default_base_dir() -> Path:
    """The base directory where none is named: root's is fixed, everybody else has one in his data directory.

    That is $XDG_DATA_HOME/joblet, else ~/.local/share/joblet (XDG Base Directory Specification: a relative path there
    counts as unset).
    """
    if os.geteuid() == 0:
        return Path(DEFAULT_BASE_DIR)
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (data if data.is_absolute() else _home() / ".local" / "share") / "joblet"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as cause:  # neither $HOME nor an entry in the password file
        raise precondition(f"uid {os.geteuid()} has no home directory", "name a base directory: --base-dir") from cause


class ServiceUsers(NamedTuple):
    """Whom api and persist become, and the group that both share."""

    api_uid: int
    persist_uid: int
    gid: int


class _Directory(NamedTuple):
    path: Path
    mode: int
    uid: int
    gid: int


def resolve_users(users: Users, layout: Layout) -> ServiceUsers:
    """The ids of the configured accounts; an unused system id where a name does not exist.

    The same answer after every restart. Raises JobletError when a name means root, or when an id that stood in for
    a missing account has since been given to somebody else.
    """
    gid = _group_id(users.group, layout.run)
    persist_uid = _user_id(users.persist, layout.logs, taken=())
    api_uid = _user_id(users.api, layout.uploads, taken=(persist_uid,))
    return ServiceUsers(api_uid=api_uid, persist_uid=persist_uid, gid=gid)


def prepare_directories(layout: Layout, users: ServiceUsers | None) -> None:
    """Make the directories of the node with their modes and owners. `users` None: everything is the caller's.

    Refuses a symbolic link or a stranger's directory in their place, a base directory that others can write, and a
    store outside it that the service users cannot reach. (Below it they need no way: see Layout.from_base.)
    """
    _prepare_base(layout.base, mode=0o755 if users else 0o700)
    me = os.geteuid()
    api = users.api_uid if users else me
    persist = users.persist_uid if users else me
    gid = users.gid if users else os.getegid()
    for directory in (
        # Without root the group may be one that many have ("users"): nobody else is let in.
        _Directory(layout.run, 0o750 if users else 0o700, me, gid),
        # Its other sockets api binds while it is root still; those of streams come and go.
        _Directory(layout.streams, 0o700, api, gid),
        _Directory(layout.jobs, 0o700, me, gid),
        _Directory(layout.state, 0o700, me, gid),
        _Directory(layout.certs, 0o700, me, gid),
        _Directory(layout.uploads, 0o700, api, gid),
        _Directory(layout.audit, 0o700, api, gid),
        # persist has no way through api's directory: it keeps a descriptor from before it gives root up.
        _Directory(layout.audit_persist, 0o700, persist, gid),
        _Directory(layout.logs, 0o700, persist, gid),
        _Directory(layout.metrics, 0o700, persist, gid),
        # Whatever jobs leave in their volumes, nobody else on the host reaches it.
        _Directory(layout.volumes, 0o700, me, gid),
    ):
        _prepare(directory)
    if users is not None:
        for store in (layout.logs, layout.metrics):
            if not store.is_relative_to(layout.base):
                _require_a_way(store)


def drop(uid: int, gid: int) -> None:
    """Become `uid` and `gid` for good, in every thread, and prove it. Comes after `renounce_new_privileges`.

    Raises JobletError(INTERNAL) when anything of root is left: the caller must end then.
    """
    assert uid > 0, "root is no unprivileged user"
    assert gid > 0, "root's group is no unprivileged group"
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    # The kernel empties the permitted, effective and ambient sets here; glibc does it in every thread.
    os.setresuid(uid, uid, uid)
    forbid_dumping()
    left = tuple(privileges_left(uid, gid))
    if left:
        raise JobletError(Reason.INTERNAL, f"privileges are left after the drop: {'; '.join(left)}")


def privileges_left(uid: int, gid: int) -> Iterator[str]:
    """What still distinguishes a thread of this process from a plain process of `uid` and `gid`, in words."""
    expected = {
        "Uid": [str(uid)] * 4,
        "Gid": [str(gid)] * 4,
        "Groups": [],
        "NoNewPrivs": ["1"],
        **{name: ["0" * 16] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
    }
    for task in Path("/proc/self/task").iterdir():
        fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines() if ":" in line)
        for name, want in expected.items():
            if fields[name].split() != want:
                yield f"thread {task.name}: {name} is {fields[name].strip()}"
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return
    yield "setresuid(0) succeeded"


def _user_id(name: str, witness: Path, *, taken: tuple[int, ...]) -> int:
    try:
        uid = pwd.getpwnam(name).pw_uid
    except KeyError:
        return _stand_in(name, witness, lambda status: status.st_uid, _user_exists, taken)
    if uid == 0:
        raise invalid(f"service user {name!r} is root", "name an unprivileged account in joblet.users")
    return uid


def _group_id(name: str, witness: Path) -> int:
    try:
        gid = grp.getgrnam(name).gr_gid
    except KeyError:
        return _stand_in(name, witness, lambda status: status.st_gid, _group_exists, ())
    if gid == 0:
        raise invalid(f"service group {name!r} is root's", "name an unprivileged group in joblet.users")
    return gid


def _stand_in(
    name: str,
    witness: Path,
    id_in: Callable[[os.stat_result], int],
    exists: Callable[[int], bool],
    taken: tuple[int, ...],
) -> int:
    """The id that stood in for `name` before, as the owner of `witness` tells; else the first that is free."""
    try:
        before = id_in(witness.lstat())
    except FileNotFoundError:
        before = 0
    if before and exists(before):
        raise precondition(
            f"{witness} belongs to id {before}, which is an account of its own and not {name!r}",
            f"make the account {name!r} and chown -R what joblet stored to it",
        )
    if before:
        return before
    for candidate in range(SYSTEM_ID_LAST, SYSTEM_ID_FIRST - 1, -1):
        if not exists(candidate) and candidate not in taken:
            return candidate
    raise precondition(f"no account {name!r} and no unused system id", f"make the account {name!r}")


def _user_exists(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _group_exists(gid: int) -> bool:
    try:
        grp.getgrgid(gid)
    except KeyError:
        return False
    return True


def _prepare_base(base: Path, *, mode: int) -> None:
    made = _make_directory(base, mode)
    descriptor = _open_directory(base)
    try:
        status, me = os.fstat(descriptor), os.geteuid()
        if status.st_uid != me:
            repair = f"chown root {base}" if me == 0 else "name one of your own: --base-dir"
            raise precondition(f"base directory {base} belongs to uid {status.st_uid}", repair)
        if not made and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise precondition(f"base directory {base} can be written by others", f"chmod 755 {base}")
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _require_a_way(store: Path) -> None:
    for parent in store.resolve().parents:
        if not parent.stat().st_mode & stat.S_IXOTH:
            raise precondition(
                f"the service users cannot reach {store}: {parent} is closed to others",
                f"chmod o+x {parent}, or store below the base directory",
            )


def _make_directory(path: Path, mode: int) -> bool:
    """Whether it was made; what is there already may be anything."""
    try:
        path.mkdir(mode=mode, parents=True)
    except FileExistsError:
        return False
    except OSError as cause:
        raise precondition(
            f"cannot make {path}: {cause.strerror}", "name a base directory that can be made: --base-dir"
        ) from cause
    return True


def _prepare(directory: _Directory) -> None:
    _make_directory(directory.path, 0o700)
    descriptor = _open_directory(directory.path)
    try:
        owner, me = os.fstat(descriptor).st_uid, os.geteuid()
        if owner not in ({0, directory.uid} if me == 0 else {me}):
            raise precondition(
                f"{directory.path} belongs to uid {owner}, expected {directory.uid}",
                f"chown -R {directory.uid}:{directory.gid} {directory.path}",
            )
        os.fchown(descriptor, directory.uid, directory.gid)
        os.fchmod(descriptor, directory.mode)
    finally:
        os.close(descriptor)


def _open_directory(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as cause:
        raise precondition(
            f"{path} is no directory of ours: {cause.strerror}", "remove what is there (a symbolic link is refused)"
        ) from cause
