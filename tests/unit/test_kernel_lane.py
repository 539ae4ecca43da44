"""The kernel lane without a machine: order of modules, command line, what the guest is told, how a console ends."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.waiting import SLOWNESS, wait_for
from tools.kernel_lane import initramfs, machine, packages
from tools.kernel_lane.__main__ import GUEST, exit_status, settings
from tools.kernel_lane.errors import LaneError
from tools.session import alive

MODULES_DEP = """\
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/fscache/fscache.ko kernel/fs/netfs/netfs.ko
kernel/net/9p/9pnet.ko:
kernel/fs/netfs/netfs.ko:
kernel/fs/fscache/fscache.ko: kernel/fs/netfs/netfs.ko
kernel/fs/overlayfs/overlay.ko:
"""
DESCRIBED = machine.Machine(
    kernel=Path("/cache/vmlinuz"),
    initramfs=Path("/work/initramfs"),
    disk=Path("/work/disk"),
    share=Path("/work/share"),
    guest_script=GUEST,
    accelerator=machine.TCG,
    cpus=2,
    memory_mib=2048,
)


def test_every_module_comes_after_what_it_needs() -> None:
    """The order of loading has the dependencies of modules.dep, each once, before the module, and nothing else."""
    dependencies = initramfs.parse_dependencies(MODULES_DEP)
    order = initramfs.load_order(dependencies, ("kernel/fs/9p/9p.ko", "kernel/net/9p/9pnet.ko"))
    assert sorted(order) == sorted(path for path in dependencies if "overlay" not in path)
    for number, path in enumerate(order):
        assert set(dependencies[path]) <= set(order[:number])


def test_the_root_comes_first() -> None:
    """What the machine's root needs is loaded before what the tests need."""
    assert initramfs.MODULES.index("ext4") < initramfs.MODULES.index("bfq")
    assert len(set(initramfs.MODULES)) == len(initramfs.MODULES)


def test_command_line() -> None:
    """The host's root is shared read-only, there is no network, and the disk has limits of its own."""
    words = machine.command(DESCRIBED)
    shares = [words[at + 1] for at, word in enumerate(words) if word == "-virtfs"]
    assert ["readonly=on" in each for each in shares] == ["path=/," in each for each in shares] == [True, False]
    assert words[words.index("-nic") + 1] == "none"
    assert "throttling.bps-total=100000000" in words[words.index("-drive") + 1]
    assert f"lane.guest={GUEST}" in words[words.index("-append") + 1].split()
    assert "-no-reboot" in words  # a panic ends the machine


def test_the_guest_reads_what_was_written() -> None:
    """Arguments with blanks, quotes and dollars reach pytest as they are, and the environment is that of CI."""
    tests = ["tests/linux", "-k", "a or 'b'", "$HOME", ""]
    script = 'eval "$1"; eval "set -- $LANE_TESTS"; printf "%s\\n" "$@" "$CI" "$JOBLET_TEST_SLOWNESS"'
    words = ("sh", "-euc", script, "sh", settings(tests, slowness=5))
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*tests, "true", "5"]


@pytest.mark.parametrize("script", [initramfs.INIT, GUEST], ids=lambda path: path.name)
def test_scripts_are_shell(script: Path) -> None:
    """What the machine runs is at least free of syntax errors."""
    subprocess.run(("sh", "-n", script), check=True)


def test_the_console_is_shown_while_it_comes() -> None:
    """Output is passed on without the carriage returns of a serial line, and the end of the program is the end."""
    shown: list[str] = []
    machine.run(["printf", r"one\r\ntwo\r\n"], timeout_s=20 * SLOWNESS, show=shown.append)
    assert "".join(shown) == "one\ntwo\n"


def test_a_machine_that_hangs_is_ended() -> None:
    """At the deadline the program is killed, and the error says which line it hung at."""
    shown: list[str] = []
    given_s = 10 * SLOWNESS  # for the lines to come
    program = "echo $$; echo tests/linux/test_it.py::test_hangs; exec sleep 60"
    with pytest.raises(LaneError, match=rf"ended after {given_s:g} s; it hung at: tests/linux/test_it.py::test_hangs"):
        machine.run(["sh", "-c", program], timeout_s=given_s, show=shown.append)
    assert not alive(int("".join(shown).split()[0]))


def test_an_interrupt_ends_the_machine() -> None:
    """Whoever stops reading the console, as Ctrl-C does, ends the program."""
    with closing(machine.console(["sh", "-c", "echo $$; exec sleep 60"], timeout_s=60)) as chunks:
        pid = int(next(chunks))
        assert alive(pid)
    assert not alive(pid)


def test_a_killed_lane_leaves_no_machine() -> None:
    """Kill -9 of the lane kills the machine, too."""
    program = (
        "from tools.kernel_lane import machine\n"
        "words = ['sh', '-c', 'echo $$; exec sleep 60']\n"
        "machine.run(words, timeout_s=60, show=lambda text: print(text, flush=True))"
    )
    lane = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert lane.stdout is not None
    pid = int(lane.stdout.readline())
    assert alive(pid)
    lane.kill()
    lane.communicate()
    wait_for(lambda: not alive(pid), what="the machine to go with its lane")


def test_a_machine_that_says_nothing_is_a_failure(tmp_path: Path) -> None:
    """Without a status of pytest there is none to give back; with one it is given back."""
    with pytest.raises(LaneError, match="ended before the tests did"):
        exit_status(tmp_path)
    (tmp_path / "status").write_text("5\n")
    assert exit_status(tmp_path) == 5


def test_missing_programs_are_named_with_the_repair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be installed the error names the packages."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaneError, match=r"e2fsprogs, qemu-system-x86, util-linux.*install"):
        packages.install_missing()
    with pytest.raises(LaneError, match="run it on Debian"):
        packages.newest_kernel()
