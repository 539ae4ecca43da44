"""What a job's root is made of: the host's programs, busybox alone, or a directory. Decided once, at start.

Here: which parts are put where, as operations of the plan. Not here: everything that every root has (/etc, /dev, /proc,
/tmp, /work), which is `plan.py`'s. The job can write to none of it. Setting: joblet.jobs.rootfs.
"""

import posixpath
import shutil
import subprocess
from pathlib import Path
from typing import Final

from common.config.settings import Jobs
from common.errors import precondition
from common.linux import mountinfo
from services.executor.launcher.operations import BindReadOnly, GiveOwnInodes, MakeDirectory, MakeSymlink, Operation

CONFIGURATION: Final = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/ssl/certs")
"""Of the host's or the directory's /etc only what programs need to be found and to check certificates."""
MADE_BY_JOBLET: Final = frozenset({"etc", "dev", "proc", "sys", "run", "tmp", "work", "volumes", "lost+found"})
"""Names at the top of a directory that are left out: the job has its own, or none."""
NEVER_SEEN: Final = "/tmp"  # noqa: S108
"""A directory of every job's root that stays empty: the job's own file system is mounted over it."""
APPLETS_S_MAX: Final = 10.0


class Rootfs:
    """The choice of the configuration, found on this host. `parts` is ready for any job."""

    def __init__(self, jobs: Jobs) -> None:
        """Raises PRECONDITION when what is chosen is not there."""
        self._directory = jobs.rootfs if jobs.rootfs.startswith("/") else ""
        match jobs.rootfs:
            case "host":
                self._fixed = _parts("/", (*jobs.read_only_paths, *CONFIGURATION), None)
            case "busybox":
                self._fixed = _busybox()
            case _:
                self._paths = _top_of(jobs.rootfs)

    @property
    def differs_by_owner(self) -> bool:
        """Whether `parts` depends on its argument."""
        return bool(self._directory)

    def parts(self, range_first: int | None) -> tuple[Operation, ...]:
        """The operations that put it into the root of a job whose ids begin at `range_first` on the host."""
        return _parts(self._directory, self._paths, range_first) if self._directory else self._fixed


def _parts(within: str, paths: tuple[str, ...], range_first: int | None) -> tuple[Operation, ...]:
    bound = tuple(BindReadOnly(path, path, within, range_first) for path in paths)
    # An overlay shows one file system: what is mounted below a directory would be missing from it.
    mounted = mountinfo.present()
    whole = [path for path in paths if not mountinfo.below(mounted, posixpath.join(within, path.lstrip("/")))]
    return bound + tuple(GiveOwnInodes(path, NEVER_SEEN) for path in whole)


def _top_of(directory: str) -> tuple[str, ...]:
    try:
        names = sorted(entry.name for entry in Path(directory).iterdir())
    except OSError as cause:
        raise precondition(
            f"joblet.jobs.rootfs: cannot read {directory}: {cause.strerror}", "name a directory with a root in it"
        ) from cause
    return (*(f"/{name}" for name in names if name not in MADE_BY_JOBLET), *CONFIGURATION)


def _busybox() -> tuple[Operation, ...]:
    """One static program under all its names."""
    repair = "install a static one (Debian: apt install busybox-static), or choose another joblet.jobs.rootfs"
    program = shutil.which("busybox", path="/bin:/usr/bin:/usr/local/bin")
    if program is None:
        raise precondition("joblet.jobs.rootfs is busybox, which is not installed", repair)
    source = str(Path(program).resolve())
    if _needs_loader(source):
        raise precondition(f"{source} is not a static program", repair)
    applets = subprocess.run([source, "--list"], capture_output=True, text=True, check=True, timeout=APPLETS_S_MAX)
    names = sorted(set(applets.stdout.split()) - {"busybox"})
    return (
        MakeDirectory("/bin"),
        BindReadOnly("/bin/busybox", source, "/", None),
        *(MakeSymlink(f"/bin/{name}", "busybox") for name in names),
    )


def _needs_loader(program: str) -> bool:
    """Whether an ELF file names an interpreter (PT_INTERP, elf(5)): it would need the host's libraries."""
    with Path(program).open("rb") as file:
        return b"/ld-" in file.read(4096)
