"""The system call profile: what can be wrong in one, what the installed one says, and its program, number by number."""

import itertools
import sys
from typing import Final

import pyseccomp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import JobletError, Reason
from services.executor.seccomp.compile import compile_filter, everything_else
from services.executor.seccomp.profile import Alternative, Comparison, Profile, load_profile, parse_profile
from tests.linux.seccomp_probes import (
    AARCH64,
    ALL_BITS,
    ALLOW,
    ARM,
    I386,
    KILL_PROCESS,
    X86_64,
    evaluate,
    failing,
)

NUMBERS: Final = range(501)
X32_BIT: Final = 0x4000_0000
MACHINES: Final = (("x86_64", X86_64), ("aarch64", AARCH64))
HIGH: Final = 0xDEAD_BEEF << 32

GOOD: Final = """
version: 1
unknown: ENOSYS
allow: [{reason: r, calls: [getpid]}]
check: [{call: socket, reason: r, errno: EPERM, allow_if: [[{argument: 0, equals: 1}]]}]
refuse: [{reason: r, errno: EPERM, calls: [reboot]}]
"""

MUST_BE_REFUSED: Final = frozenset(
    {
        "setns",
        "unshare",
        "clone3",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "pidfd_getfd",
        "kcmp",
        "keyctl",
        "add_key",
        "request_key",
        "open_by_handle_at",
        "name_to_handle_at",
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "userfaultfd",
        "bpf",
        "perf_event_open",
        "kexec_load",
        "kexec_file_load",
        "init_module",
        "finit_module",
        "delete_module",
        "reboot",
        "swapon",
        "swapoff",
        "acct",
        "quotactl",
        "quotactl_fd",
        "iopl",
        "ioperm",
        "settimeofday",
        "clock_settime",
        "clock_adjtime",
        "adjtimex",
        "syslog",
        "mount",
        "umount2",
        "fsopen",
        "fsconfig",
        "fsmount",
        "fspick",
        "open_tree",
        "move_mount",
        "mount_setattr",
        "pivot_root",
        "chroot",
    }
)
"""Rows A12, A17 and A19 to A21 of the threat catalogue, written out: not taken from the profile."""


@pytest.fixture(scope="module")
def profile() -> Profile:
    """The installed one."""
    return load_profile()


@pytest.fixture(scope="module")
def programs() -> dict[str, bytes]:
    """The installed profile for each machine."""
    return {machine: compile_filter(machine) for machine, _ in MACHINES}


def name_of(number: int, machine: str) -> str | None:
    """The name that libseccomp has for a number, if any."""
    try:
        name: bytes = pyseccomp.resolve_syscall(getattr(pyseccomp.Arch, machine.upper()), number)
    except ValueError:
        return None
    return name.decode()


def test_a_good_profile() -> None:
    """Every field is read; a comparison without a mask is about the low 32 bits."""
    profile = parse_profile(GOOD, source="here")
    assert list(profile.names()) == ["getpid", "socket", "reboot"]
    assert profile.check[0].allow_if == ((Comparison(argument=0, equals=1, mask=ALL_BITS),),)


@pytest.mark.parametrize(
    ("good", "bad", "complaint"),
    [
        ("version: 1", "version: 2", "version 2"),
        ("unknown: ENOSYS", "unknown: ENOTHING", "'ENOTHING' is no errno"),
        ("errno: EPERM, calls", "errno: errorcode, calls", "'errorcode' is no errno"),
        ("calls: [reboot]", "calls: [getpid]", "named more than once: getpid"),
        ("calls: [reboot]", "calls: [socket]", "named more than once: socket"),
        ("calls: [reboot]", "calls: reboot", r"refuse\[0\].calls"),
        ("calls: [reboot]", "calls: [1]", r"refuse\[0\].calls"),
        ("calls: [reboot]", "names: [reboot]", "names"),
        ("allow_if: ", "deny_if: ", "deny_if"),
        ("allow_if: [[{argument: 0, equals: 1}]]", "allow_if: []", "socket: give one of"),
        ("errno: EPERM, allow_if", "errno: EPERM, refuse_if: [[{argument: 0, equals: 2}]], allow_if", "give one of"),
        ("[[{argument: 0, equals: 1}]]", "[[]]", "socket: an alternative compares"),
        ("[[{argument: 0, equals: 1}]]", "[[{argument: 0, equals: 1}, {argument: 0, equals: 2}]]", "socket: an altern"),
        ("argument: 0", "argument: 6", "socket: there is no argument 6"),
        ("argument: 0", "argument: -1", "socket: there is no argument -1"),
        ("equals: 1", "equals: -1", "can never be found"),
        ("equals: 1", "equals: 0x100000000", "can never be found"),
        ("equals: 1", "equals: 1, mask: 2", "0x1 can never be found under mask 0x2"),
        ("equals: 1", "equals: 0, mask: 0", "mask 0x0"),
        ("equals: 1", "equals: one", r"check\[0\].allow_if"),
        ("allow:", "allow: [", "here: "),
    ],
)
def test_what_is_wrong_is_told_by_name(good: str, bad: str, complaint: str) -> None:
    """A damaged profile is refused as a whole, with the source and what is wrong."""
    assert good in GOOD
    with pytest.raises(JobletError, match=complaint) as raised:
        parse_profile(GOOD.replace(good, bad, 1), source="here")
    assert raised.value.reason is Reason.INVALID
    assert raised.value.message.startswith("here: ")


@pytest.mark.threat("A12")
@pytest.mark.threat("A17")
@pytest.mark.threat("A19")
@pytest.mark.threat("A20")
@pytest.mark.threat("A21")
@pytest.mark.parametrize(("machine", "architecture"), MACHINES)
def test_what_the_catalogue_forbids_is_refused(
    profile: Profile, programs: dict[str, bytes], machine: str, architecture: int
) -> None:
    """The names of the catalogue stand under `refuse`, and their numbers fail with EPERM; clone3 with ENOSYS."""
    refused = {name for group in profile.refuse for name in group.calls}
    assert refused >= MUST_BE_REFUSED
    for number in NUMBERS:
        name = name_of(number, machine)
        if name in MUST_BE_REFUSED:
            action = evaluate(programs[machine], number, architecture=architecture)
            assert (name, action) == (name, failing("ENOSYS" if name == "clone3" else "EPERM"))


@pytest.mark.parametrize("machine", [machine for machine, _ in MACHINES])
def test_every_known_call_is_named(profile: Profile, machine: str) -> None:
    """Nothing that this libseccomp knows is forgotten: it is allowed, checked or refused, with a reason."""
    known = {name for number in NUMBERS if (name := name_of(number, machine)) is not None}
    assert known - set(profile.names()) == set()


@pytest.mark.parametrize(("machine", "architecture"), MACHINES)
def test_every_number_meets_what_the_profile_says(
    profile: Profile, programs: dict[str, bytes], machine: str, architecture: int
) -> None:
    """From 0 to 500 and beyond, on both machines; a number without a name fails with ENOSYS."""
    said = {name: ALLOW for group in profile.allow for name in group.calls}
    said |= {name: failing(group.errno) for group in profile.refuse for name in group.calls}
    checked = {rule.call for rule in profile.check}
    for number in (*NUMBERS, 1023, X32_BIT - 1):
        name = name_of(number, machine) if number in NUMBERS else None
        if name not in checked:
            action = evaluate(programs[machine], number, architecture=architecture)
            assert (number, name, action) == (number, name, said.get(name or "", failing("ENOSYS")))


@pytest.mark.threat("A22")
def test_foreign_abis_die(programs: dict[str, bytes]) -> None:
    """Every number of i386, of x32 and of 32-bit ARM, and of the other machine, kills the process."""
    for number in NUMBERS:
        assert evaluate(programs["x86_64"], number, architecture=I386) == KILL_PROCESS
        assert evaluate(programs["x86_64"], number | X32_BIT) == KILL_PROCESS
        assert evaluate(programs["x86_64"], number, architecture=AARCH64) == KILL_PROCESS
        assert evaluate(programs["aarch64"], number, architecture=ARM) == KILL_PROCESS
        assert evaluate(programs["aarch64"], number) == KILL_PROCESS
    assert evaluate(programs["x86_64"], 0x7FFF_FFFF) == KILL_PROCESS
    assert evaluate(programs["x86_64"], ALL_BITS) == failing("ENOSYS")  # -1: what a tracer writes to skip a call


DECISIONS: Final[tuple[tuple[str, tuple[int, ...], int], ...]] = (
    *(("clone", (flags,), ALLOW) for flags in (0, 17, 0x3D0F00, 0x0120_0011, 0xFF)),
    *(("clone", (1 << bit,), failing("EPERM")) for bit in (17, 25, 26, 27, 28, 29, 30)),
    ("clone", (0x7E02_0000 | 17,), failing("EPERM")),
    *(("socket", (family, 1, 0), ALLOW) for family in (1, 2, 10, 16)),
    *(("socket", (family, 1, 1), ALLOW) for family in (1, 2, 10)),
    *(("socket", (16, 3, protocol), failing("EAFNOSUPPORT")) for protocol in (*range(1, 33), 2**31)),
    *(("socket", (family, 1, 0), failing("EAFNOSUPPORT")) for family in {*range(64), ALL_BITS} - {1, 2, 10, 16}),
    *(("socketpair", (family, 1, 0), failing("EAFNOSUPPORT")) for family in {*range(64)} - {1}),
    ("socketpair", (1, 1, 0), ALLOW),
    *(("ioctl", (0, command), failing("EPERM")) for command in (0x5412, 0x541C, 0x5423, 0x401C_5820)),
    *(("ioctl", (command, command ^ 1 << bit), ALLOW) for command in (0x5412, 0x401C_5820) for bit in range(32)),
    *(("ioctl", (0, command), ALLOW) for command in (0, 0x5401, 0x5411, 0x5413, 0x5421, 0x8910, ALL_BITS)),
    *(("sched_setscheduler", (0, policy), ALLOW) for policy in (0, 3, 5, 0x4000_0000, 0x4000_0003)),
    *(("sched_setscheduler", (0, policy), failing("EPERM")) for policy in (1, 2, 4, 6, 7, 0x4000_0001, ALL_BITS)),
    *(("personality", (value,), ALLOW) for value in (0, 8, 0x2_0000, 0x2_0008, ALL_BITS)),
    *(("personality", (value,), failing("EPERM")) for value in (1, 0x4_0000, 0x10_0000, 0x40_0000, ALL_BITS - 1)),
)
"""Calls whose arguments decide, and what is decided."""


@pytest.mark.threat("A12")
@pytest.mark.threat("A18")
@pytest.mark.threat("A23")
@pytest.mark.threat("C08")
@pytest.mark.threat("C11")
@pytest.mark.parametrize(("machine", "architecture"), MACHINES)
def test_arguments_decide_by_the_bits_that_the_kernel_reads(
    programs: dict[str, bytes], machine: str, architecture: int
) -> None:
    """The table holds with the high halves of all registers empty and full."""
    for call, arguments, action in DECISIONS:
        number = pyseccomp.resolve_syscall(getattr(pyseccomp.Arch, machine.upper()), call)
        for high in (0, HIGH, 2**64 - 2**32):
            filled = [argument | high for argument in arguments]
            decided = evaluate(programs[machine], number, filled, architecture=architecture)
            assert (call, filled, decided) == (call, filled, action)


def test_the_program_is_the_same_every_time(programs: dict[str, bytes]) -> None:
    """Compiling is a function of the profile, and the program fits into what the kernel takes."""
    for machine, program in programs.items():
        assert compile_filter(machine) == program
        assert len(program) % 8 == 0
        assert len(program) // 8 <= 4096


def test_a_machine_without_a_profile_is_refused() -> None:
    """An architecture that nobody has tried gets no filter that only looks like one."""
    with pytest.raises(JobletError, match="no system call profile for riscv64") as raised:
        compile_filter("riscv64")
    assert (raised.value.reason, raised.value.detail) == (Reason.PRECONDITION, "run joblet on aarch64 or x86_64")


def test_without_the_library_the_repair_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The binding raises at its import; the error names the package to install."""
    monkeypatch.delitem(sys.modules, "pyseccomp")
    monkeypatch.setattr("ctypes.util.find_library", lambda _name: None)
    with pytest.raises(JobletError, match="libseccomp is missing") as raised:
        compile_filter("x86_64")
    assert raised.value.reason is Reason.PRECONDITION
    assert "apt install libseccomp2" in raised.value.detail


BITS_TRIED: Final = 4
comparisons = st.integers(1, 2**BITS_TRIED - 1).flatmap(
    lambda mask: st.integers(0, 2**BITS_TRIED - 1).map(lambda value: (mask, value & mask))
)
alternatives = st.dictionaries(st.sampled_from([0, 2]), comparisons, min_size=1).map(
    lambda compared: tuple(
        Comparison(argument=argument, mask=mask, equals=value) for argument, (mask, value) in compared.items()
    )
)


def holds(alternative: Alternative, arguments: tuple[int, ...]) -> bool:
    """Whether all of its comparisons do."""
    return all(arguments[it.argument] & it.mask == it.equals for it in alternative)


@given(st.lists(alternatives, min_size=1, max_size=5).map(tuple))
def test_everything_else_is_the_complement(chosen: tuple[Alternative, ...]) -> None:
    """For all values of the arguments: one alternative of the rest holds where none of the given does, else none."""
    rest = everything_else(chosen)
    for first, third in itertools.product(range(2**BITS_TRIED), repeat=2):
        arguments = (first, 0, third)
        found = any(holds(alternative, arguments) for alternative in chosen)
        assert sum(holds(alternative, arguments) for alternative in rest) == (0 if found else 1)
