"""What the lane takes from Debian: programs that are installed, and packages that are unpacked only.

Belongs here: every call of apt and dpkg. Does not belong here: what is made of the packages (initramfs.py). See
apt-get(8), apt-cache(8), dpkg-deb(1).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from tools.kernel_lane.errors import LaneError

PROGRAMS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "setpriv": "util-linux",
}
"""Program → the package that has it."""
KERNEL: Final = "linux-image-amd64"
"""It depends on the newest kernel's package, whose name has the version in it."""


class Package(NamedTuple):
    """A package that apt knows."""

    name: str
    version: str


def install_missing() -> None:
    """Install the programs that are not there; needs root only if something is missing."""
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if not missing:
        return
    words = ("apt-get", "install", "--no-install-recommends", *sorted(missing))
    repair = f"install them with: sudo {' '.join(words)}"
    if shutil.which("apt-get") is None:
        raise LaneError(f"programs of these Debian packages are missing: {', '.join(sorted(missing))}; install them")
    if os.geteuid() != 0:
        raise LaneError(f"programs of these packages are missing: {', '.join(sorted(missing))}; {repair}")
    refresh()
    _run(*words, "--yes", "--quiet=2", repair=repair)


def refresh() -> None:
    """Fetch the lists of packages; without root apt works with those that it has."""
    if os.geteuid() == 0:
        _run("apt-get", "update", "--quiet=2", repair="look at /etc/apt/sources.list and at the network")


def newest_kernel() -> Package | None:
    """The kernel's package in apt's lists; None if they do not know any."""
    if shutil.which("apt-cache") is None:
        raise LaneError("there is no apt-cache: the lane takes its kernel from Debian's packages; run it on Debian")
    lines = _output("apt-cache", "depends", "--important", KERNEL).splitlines()
    names = [line.split()[-1] for line in lines if line.strip().startswith("Depends:")]
    return package(names[0]) if names else None


def package(name: str) -> Package | None:
    """A package with the version that apt would take; None if its lists do not know it."""
    fields = dict(
        line.split(": ", 1)
        for line in _output("apt-cache", "show", "--no-all-versions", name).splitlines()
        if ": " in line
    )
    return Package(name, fields["Version"]) if "Version" in fields else None


def unpack(packages: tuple[str, ...], into: Path) -> None:
    """Download packages and unpack them below a directory, without installing anything."""
    downloads = into / "downloads"
    downloads.mkdir()
    repair = "look at the network, or make apt's lists new with: sudo apt-get update"
    as_ourselves = f"APT::Sandbox::User={'root' if os.geteuid() == 0 else ''}"  # _apt cannot write where we can
    _run("apt-get", "download", "--quiet=2", "-o", as_ourselves, *packages, repair=repair, cwd=downloads)
    for archive in sorted(downloads.glob("*.deb")):
        _run("dpkg-deb", "-x", str(archive), str(into), repair=f"is there space in {into}?")
    shutil.rmtree(downloads)


def _run(*words: str, repair: str, cwd: Path | None = None) -> None:
    sys.stdout.write(f"lane: {' '.join(words)}\n")
    sys.stdout.flush()
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, cwd=cwd, check=False
    )
    if done.returncode != 0:
        raise LaneError(f"`{' '.join(words)}` failed with {done.returncode}; {repair}")


def _output(*words: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False).stdout
