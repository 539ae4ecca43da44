"""The machine: qemu's command line, its disk, its console, and its end.

Belongs here: how a machine is described, started, watched and ended. Does not belong here: what runs in it (guest.sh).
See qemu-system-x86_64(1).
"""

import os
import select
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from tools.kernel_lane.errors import LaneError

DISK_BYTES: Final = 2**30
DISK_BYTES_PER_S: Final = 100 * 10**6
DISK_OPERATIONS_PER_S: Final = 10_000
KVM: Final = "kvm"
TCG: Final = "tcg,thread=multi"
KVM_PROBE_S: Final = 10
LINE_SHOWN_MAX: Final = 200
"""Characters, of the line at which a machine hung."""


class Machine(NamedTuple):
    """Everything that decides the command line."""

    kernel: Path
    initramfs: Path
    disk: Path
    share: Path
    """Directory of the host that guest and host write to."""
    guest_script: Path
    accelerator: str
    cpus: int
    memory_mib: int


def command(machine: Machine) -> list[str]:
    """Qemu for `machine`: console on stdout, host root read-only, no network, ended by a restart or a panic."""
    limits = f"throttling.bps-total={DISK_BYTES_PER_S},throttling.iops-total={DISK_OPERATIONS_PER_S}"
    return [
        *_qemu(machine.kernel, machine.accelerator, f"lane.guest={machine.guest_script} quiet"),
        *("-initrd", str(machine.initramfs)),
        *("-smp", str(machine.cpus), "-m", str(machine.memory_mib)),
        *("-virtfs", "local,path=/,mount_tag=root,security_model=passthrough,readonly=on,multidevs=remap"),
        *("-virtfs", f"local,path={machine.share},mount_tag=lane,security_model=none"),
        *("-drive", f"file={machine.disk},if=virtio,format=raw,cache=unsafe,{limits}"),
    ]


def accelerator(kernel: Path) -> str:
    """KVM where a kernel says a word with it, else software. /dev/kvm alone tells nothing: it may be there and hang."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    with closing(console(_qemu(kernel, KVM, "earlyprintk=serial"), timeout_s=KVM_PROBE_S)) as chunks:
        said = b""
        try:
            for chunk in chunks:
                said += chunk
                if b"Linux version" in said:
                    return KVM
        except LaneError:
            return TCG
    return TCG


def make_disk(path: Path) -> None:
    """An empty ext4 file system in a sparse file, ready to the last block, so that nothing is written later for it."""
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    options = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(("mkfs.ext4", "-q", "-E", options, path), stdin=subprocess.DEVNULL, check=True)


def run(words: list[str], *, timeout_s: float, show: Callable[[str], None]) -> None:
    """Start a machine and show its console until it ends.

    LaneError, with the line at which it hung, when it does not end in time.
    """
    said = ""
    with closing(console(words, timeout_s=timeout_s)) as chunks:
        try:
            for chunk in chunks:
                text = chunk.decode(errors="replace").replace("\r", "")
                show(text)
                said = (said + text)[-LINE_SHOWN_MAX:]
        except LaneError as cause:
            last_line = said.strip().rpartition("\n")[2]
            raise LaneError(f"{cause}; it hung at: {last_line}") from cause


def console(words: list[str], *, timeout_s: float) -> Generator[bytes, None, None]:
    """What a program prints, as it comes, until it ends. Closing the generator kills the program."""
    deadline = time.monotonic() + timeout_s
    # Whatever happens to us, even kill -9: the kernel ends the machine when we are gone.
    bound = ("setpriv", "--pdeathsig", "KILL", *words)
    process = subprocess.Popen(bound, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        while True:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise LaneError(f"the machine was ended after {timeout_s:g} s")
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                return
            yield chunk
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _qemu(kernel: Path, accelerated_by: str, parameters: str) -> list[str]:
    return [
        *("qemu-system-x86_64", "-accel", accelerated_by, "-cpu", "max", "-nodefaults", "-nic", "none", "-no-reboot"),
        *("-display", "none", "-monitor", "none", "-serial", "stdio"),
        *("-kernel", str(kernel), "-append", f"console=ttyS0 panic=-1 mitigations=off {parameters}"),
    ]
