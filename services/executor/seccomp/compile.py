"""From the profile to the program that the kernel runs at every system call of a job, by libseccomp.

Here: names into numbers, rules into libseccomp's, the export. Not here: the policy (`profile.yml`), what it may say
(`profile.py`), the installing (`services/executor/linux/seccomp.py`). Every instruction is libseccomp's own.
References: seccomp(2), seccomp_rule_add(3), seccomp_attr_set(3).

No rule that allows a call overlaps with one that refuses it: in which order libseccomp tries them is not documented.
So a check becomes rules for its alternatives, and rules for exactly everything else.
"""

import contextlib
import os
from types import ModuleType
from typing import Any, Final, NamedTuple

from common.errors import precondition
from services.executor.seccomp.profile import (
    ARGUMENT_BITS,
    ARGUMENTS_MAX,
    Alternative,
    Checked,
    Comparison,
    Profile,
    errno_number,
    load_profile,
)

ARCHITECTURES: Final = {"x86_64": "X86_64", "aarch64": "AARCH64"}
"""os.uname().machine → the name of libseccomp. A profile means nothing where nobody has tested it."""

_BINARY_TREE: Final = 2  # SCMP_FLTATR_CTL_OPTIMIZE
_BITS: Final = ARGUMENTS_MAX * ARGUMENT_BITS


class Pattern(NamedTuple):
    """Some bits of all arguments, laid side by side with the first argument highest, and the values they have."""

    mask: int
    value: int


def compile_filter(machine: str = os.uname().machine, *, profile: Profile | None = None) -> bytes:
    """The installed profile, or `profile`, for `machine`: an array of struct sock_filter in this machine's byte order.

    Takes some 20 ms; the same input gives the same bytes. Raises JobletError PRECONDITION when this host lacks
    libseccomp or `machine` is not supported, INVALID when the profile is damaged.
    """
    if machine not in ARCHITECTURES:
        raise precondition(
            f"there is no system call profile for {machine}", f"run joblet on {' or '.join(sorted(ARCHITECTURES))}"
        )
    library = _libseccomp()
    try:
        return _Compiler(library, machine, load_profile() if profile is None else profile).program()
    except OSError as cause:
        raise precondition(
            f"libseccomp cannot compile the system call profile: {cause}", "install libseccomp 2.5 or newer"
        ) from cause


def _libseccomp() -> ModuleType:
    try:
        # Not at the top: without the library the import fails, and only jobs need it, not `joblet doctor`.
        import pyseccomp  # noqa: PLC0415
    except (RuntimeError, OSError) as cause:
        raise precondition(
            f"libseccomp is missing, without which no job can be confined: {cause}",
            "install it (Debian, Ubuntu: apt install libseccomp2; Fedora: dnf install libseccomp)",
        ) from cause
    module: ModuleType = pyseccomp
    return module


class _Compiler:
    """One compilation: libseccomp's filter, and which rule is whose."""

    def __init__(self, library: ModuleType, machine: str, profile: Profile) -> None:
        self._library = library
        self._architecture: int = getattr(library.Arch, ARCHITECTURES[machine])
        self._profile = profile
        self._unknown = self._failing(profile.unknown)
        self._filter = library.SyscallFilter(self._unknown)

    def program(self) -> bytes:
        """Compile."""
        self._configure()
        for allowed in self._profile.allow:
            for call in allowed.calls:
                self._rule(self._library.ALLOW, call)
        for refused in self._profile.refuse:
            for call in refused.calls:
                self._rule(self._failing(refused.errno), call)
        for check in self._profile.check:
            self._check(check)
        return self._export()

    def _configure(self) -> None:
        self._filter.set_attr(self._library.Attr.ACT_BADARCH, self._library.KILL_PROCESS)
        # A version before 2.5 has no such attribute and makes a chain of comparisons: slower, with the same answers.
        with contextlib.suppress(OSError):
            self._filter.set_attr(self._library.Attr.CTL_OPTIMIZE, _BINARY_TREE)
        if self._architecture != self._library.system_arch():
            self._filter.add_arch(self._architecture)
            self._filter.remove_arch(self._library.Arch.NATIVE)

    def _check(self, check: Checked) -> None:
        failing = self._failing(check.errno)
        alternatives = check.allow_if or check.refuse_if
        found, otherwise = (self._library.ALLOW, failing) if check.allow_if else (failing, self._library.ALLOW)
        for alternative in alternatives:
            self._rule(found, check.call, alternative)
        for alternative in everything_else(alternatives):
            self._rule(otherwise, check.call, alternative)

    def _rule(self, action: int, call: str, alternative: Alternative = ()) -> None:
        known = self._library.resolve_syscall(self._architecture, call) >= 0
        # libseccomp takes no rule that says what it would do anyway.
        if not known or action == self._unknown:
            return
        comparisons = [self._comparison(comparison) for comparison in alternative]
        self._filter.add_rule_exactly(action, call, *comparisons)

    def _comparison(self, comparison: Comparison) -> Any:
        masked = self._library.MASKED_EQ
        return self._library.Arg(comparison.argument, masked, comparison.mask, comparison.equals)

    def _failing(self, errno_name: str) -> int:
        action: int = self._library.ERRNO(errno_number(errno_name))
        return action

    def _export(self) -> bytes:
        with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "r+b") as file:
            self._filter.export_bpf(file)
            file.seek(0)
            return file.read()


def everything_else(alternatives: tuple[Alternative, ...]) -> tuple[Alternative, ...]:
    """Alternatives of which exactly one holds where none of the given ones does, and none where one does.

    Bit by bit from the highest that is compared: a bit's value that no given pattern has is an answer by itself.
    """
    return tuple(_alternative(pattern) for pattern in _outside([_pattern(given) for given in alternatives]))


def _outside(given: list[Pattern], above: Pattern = Pattern(0, 0), bit: int = _BITS - 1) -> list[Pattern]:  # noqa: B008  # immutable
    if not given:
        return [above]
    rest = 2 ** (bit + 1) - 1
    if any(not pattern.mask & rest for pattern in given):  # it holds, whatever the bits below are
        return []
    bit = max((pattern.mask & rest).bit_length() for pattern in given) - 1
    found = []
    for value in (0, 1 << bit):
        fitting = [pattern for pattern in given if not pattern.mask >> bit & 1 or pattern.value & 1 << bit == value]
        found += _outside(fitting, Pattern(above.mask | 1 << bit, above.value | value), bit - 1)
    return found


def _pattern(alternative: Alternative) -> Pattern:
    mask = value = 0
    for comparison in alternative:
        shift = _shift(comparison.argument)
        mask |= comparison.mask << shift
        value |= comparison.equals << shift
    return Pattern(mask, value)


def _alternative(pattern: Pattern) -> Alternative:
    comparisons = []
    for argument in range(ARGUMENTS_MAX):
        mask = pattern.mask >> _shift(argument) & 2**ARGUMENT_BITS - 1
        if mask:
            equals = pattern.value >> _shift(argument) & mask
            comparisons.append(Comparison(argument=argument, mask=mask, equals=equals))
    return tuple(comparisons)


def _shift(argument: int) -> int:
    return (ARGUMENTS_MAX - 1 - argument) * ARGUMENT_BITS
