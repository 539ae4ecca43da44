"""The kernel, and the small root file system that it starts with: busybox, modules in their order, and init.sh.

Belongs here: which modules, in which order, and the cache of both. Does not belong here: apt (packages.py), what runs
in the machine (init.sh, guest.sh). See modules.dep(5), and Documentation/filesystems/ramfs-rootfs-initramfs.rst of the
kernel.
"""

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tools.kernel_lane import packages
from tools.kernel_lane.errors import LaneError

INIT: Final = Path(__file__).with_name("init.sh")
BUSYBOX: Final = "busybox-static"
MODULES: Final = (
    # What the machine's root needs, in this order: bus, shared directories, overlay, disk.
    *("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_blk", "crc32c_generic", "ext4", "loop"),
    # What jobs' limits and networks need. The kernel cannot fetch any of them itself: the root has no modprobe.
    *("bfq", "veth", "bridge", "nf_tables", "nf_conntrack", "nf_nat", "nft_chain_nat", "nft_nat", "nft_masq", "nft_ct"),
    *("nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6", "nft_limit", "nft_log", "nft_fib_inet"),
    *("nft_meta_bridge", "nft_reject_bridge", "nf_conntrack_bridge"),
    # What volumes need: encryption (fscrypt's ciphers are named at run time, so no module says that it needs them),
    # project quotas of ext4, and a file system that shares blocks.
    *("dm_crypt", "ecb", "xts", "cts", "sha512_generic", "quota_v2", "xfs"),
    # What jobs must not reach: a refusal proves nothing where the kernel has not got the thing.
    *("af_alg", "algif_hash", "vsock"),
)


class BootFiles(NamedTuple):
    """What a machine is started with; a directory of the cache."""

    kernel: Path
    busybox: Path
    modules: tuple[Path, ...]
    """In the order of loading."""


def boot_files(cache: Path) -> BootFiles:
    """The newest kernel with what belongs to it, out of the cache or made now.

    A second lane on the same checkout waits until the first one has filled the cache.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _boot_files(cache)


def _boot_files(cache: Path) -> BootFiles:
    known = packages.newest_kernel()
    if known is None or not _entry(cache, known).exists():
        packages.refresh()
        known = packages.newest_kernel()
    if known is None:
        raise LaneError(f"apt knows no {packages.KERNEL}: the lane needs Debian's packages for amd64 in its sources")
    entry = _entry(cache, known)
    if not entry.exists():
        _fill(entry, known)
    return BootFiles(entry / "vmlinuz", entry / "busybox", tuple(sorted((entry / "modules").iterdir())))


def load_order(dependencies: Mapping[str, Sequence[str]], wanted: Sequence[str]) -> tuple[str, ...]:
    """`wanted` and all that it depends on, each once and after what it needs itself."""
    order: dict[str, None] = {}

    def add(name: str) -> None:
        for each in dependencies[name]:
            if each not in order:
                add(each)
        order[name] = None

    for name in wanted:
        add(name)
    return tuple(order)


def parse_dependencies(text: str) -> dict[str, tuple[str, ...]]:
    """The lines of modules.dep by path: `a.ko: b.ko c.ko` means that a needs b and c."""
    lines = (line.partition(":") for line in text.splitlines())
    return {path: tuple(needed.split()) for path, _, needed in lines}


def pack(files: BootFiles, target: Path) -> None:
    """Write the initramfs: the archive that the kernel unpacks into its first root."""
    with tempfile.TemporaryDirectory(prefix="kernel-lane-initramfs-") as directory:
        root = Path(directory)
        for each in ("bin", "modules", "proc", "sys", "dev", "host", "changes", "root"):
            (root / each).mkdir()
        shutil.copy(files.busybox, root / "bin")
        shutil.copy(INIT, root / "init")
        (root / "init").chmod(0o755)
        for module in files.modules:
            shutil.copy(module, root / "modules")
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        with target.open("wb") as archive:
            command = (str(files.busybox), "cpio", "-o", "-H", "newc")
            subprocess.run(
                command, input=names.encode(), stdout=archive, stderr=subprocess.DEVNULL, cwd=root, check=True
            )


def _entry(cache: Path, kernel: packages.Package) -> Path:
    """Named by everything that decides its content, so that it never has to be looked into."""
    modules = hashlib.sha256(" ".join(MODULES).encode()).hexdigest()[:8]
    return cache / f"{kernel.name}_{kernel.version}_{modules}"


def _fill(entry: Path, kernel: packages.Package) -> None:
    """Make a directory of the cache; it gets its name when it is whole."""
    with tempfile.TemporaryDirectory(prefix="unpacked-", dir=entry.parent) as directory:
        unpacked, whole = Path(directory, "packages"), Path(directory, "whole")
        unpacked.mkdir()
        (whole / "modules").mkdir(parents=True)
        packages.unpack((kernel.name, BUSYBOX), unpacked)
        shutil.copy(unpacked / "bin" / "busybox", whole)
        (image,) = (unpacked / "boot").glob("vmlinuz-*")
        shutil.copy(image, whole / "vmlinuz")
        for number, module in enumerate(_modules(unpacked, image.name.removeprefix("vmlinuz-"))):
            shutil.copy(module, whole / "modules" / f"{number:03}-{module.name}")
        whole.rename(entry)


def _modules(unpacked: Path, release: str) -> list[Path]:
    """The files of MODULES and of what they need; a module that is built into the kernel has none."""
    folder = unpacked / "lib" / "modules" / release
    subprocess.run((unpacked / "bin" / "busybox", "depmod", "-b", unpacked, release), check=True)
    dependencies = parse_dependencies((folder / "modules.dep").read_text())
    paths = {_name(path): path for path in dependencies}
    built_in = {_name(path) for path in (folder / "modules.builtin").read_text().split()}
    missing = [name for name in MODULES if name not in paths and name not in built_in]
    if missing:
        raise LaneError(f"the kernel {release} has no module {', '.join(missing)}: correct MODULES in {__file__}")
    return [folder / path for path in load_order(dependencies, [paths[name] for name in MODULES if name in paths])]


def _name(path: str) -> str:
    return Path(path).name.partition(".ko")[0].replace("-", "_")
