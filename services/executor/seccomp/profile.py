"""The system call policy of jobs, as frozen values: `profile.yml` read and checked.

Here: what a profile can say, and what is wrong in one, by name. Not here: the policy itself (`profile.yml`), system
call numbers and the program for the kernel (`compile.py`).
"""

import errno
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from common.config.yamltext import parse_yaml
from common.errors import JobletError, invalid

PROFILE_FILE: Final = Path(__file__).with_name("profile.yml")
VERSION: Final = 1
ARGUMENTS_MAX: Final = 6  # of a system call
ARGUMENT_BITS: Final = 64
LOW_HALF: Final = 0xFFFF_FFFF
"""The bits that are compared where a comparison names none."""


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that is not known is refused: a mistyped rule must not be a rule less."""


class Allowed(_Strict, frozen=True, kw_only=True):
    """Calls that are left to the kernel."""

    reason: str
    calls: tuple[str, ...]


class Refused(_Strict, frozen=True, kw_only=True):
    """Calls that fail with `errno`, a name such as EPERM."""

    reason: str
    errno: str
    calls: tuple[str, ...]


class Comparison(_Strict, frozen=True, kw_only=True):
    """The bits of `mask` in argument number `argument`, from 0, equal `equals`."""

    argument: int
    equals: int
    mask: int = LOW_HALF


Alternative = tuple[Comparison, ...]
"""Holds when all of its comparisons do."""


class Checked(_Strict, frozen=True, kw_only=True):
    """A call that depends on its arguments: one of the two lists is empty.

    With `allow_if` it is left to the kernel when an alternative holds, and else it fails with `errno`; with
    `refuse_if` it fails when one holds.
    """

    call: str
    reason: str
    errno: str
    allow_if: tuple[Alternative, ...] = ()
    refuse_if: tuple[Alternative, ...] = ()


class Profile(_Strict, frozen=True, kw_only=True):
    """What every system call of a job meets. `unknown` is the errno of all that is not named."""

    version: int
    unknown: str
    allow: tuple[Allowed, ...]
    check: tuple[Checked, ...]
    refuse: tuple[Refused, ...]

    def names(self) -> Iterator[str]:
        """Every call that is named, as often as it is."""
        for allowed in self.allow:
            yield from allowed.calls
        yield from (checked.call for checked in self.check)
        for refused in self.refuse:
            yield from refused.calls


def load_profile() -> Profile:
    """The profile that is installed with this module. Raises JobletError INVALID when it was damaged."""
    return parse_profile(PROFILE_FILE.read_text(encoding="utf-8"), source=str(PROFILE_FILE))


def parse_profile(text: str, *, source: str) -> Profile:
    """The profile in a YAML text; `source` names it in errors. Raises JobletError INVALID."""
    try:
        profile = msgspec.convert(parse_yaml(text), Profile)
        _check(profile)
    except (yaml.YAMLError, msgspec.ValidationError) as cause:
        raise invalid(f"{source}: {' '.join(str(cause).split())}", "restore the file") from cause
    except JobletError as error:
        raise invalid(f"{source}: {error.message}", error.detail) from error
    return profile


def errno_number(name: str) -> int:
    """The number of EPERM and so on. Raises JobletError INVALID."""
    number: Any = getattr(errno, name, None)
    if not isinstance(number, int):
        raise invalid(f"{name[:64]!r} is no errno", "use a name of errno(3), such as EPERM")
    return number


def _check(profile: Profile) -> None:
    if profile.version != VERSION:
        raise invalid(f"version {profile.version} of a profile is not known", f"write version {VERSION}")
    twice = sorted(name for name, count in Counter(profile.names()).items() if count > 1)
    if twice:
        raise invalid(f"named more than once: {', '.join(twice)}", "one call has one rule")
    errno_number(profile.unknown)
    for refused in profile.refuse:
        errno_number(refused.errno)
    for checked in profile.check:
        errno_number(checked.errno)
        _check_rule(checked)


def _check_rule(rule: Checked) -> None:
    if bool(rule.allow_if) == bool(rule.refuse_if):
        raise invalid(f"{rule.call}: give one of allow_if and refuse_if")
    for alternative in (*rule.allow_if, *rule.refuse_if):
        arguments = [comparison.argument for comparison in alternative]
        if not arguments or len(set(arguments)) != len(arguments):
            raise invalid(f"{rule.call}: an alternative compares each of its arguments once, and at least one")
        for comparison in alternative:
            _check_comparison(rule.call, comparison)


def _check_comparison(call: str, comparison: Comparison) -> None:
    argument, mask, equals = comparison.argument, comparison.mask, comparison.equals
    if not 0 <= argument < ARGUMENTS_MAX:
        raise invalid(f"{call}: there is no argument {argument}", f"count from 0 to {ARGUMENTS_MAX - 1}")
    if not 0 < mask < 2**ARGUMENT_BITS:
        raise invalid(f"{call}: mask {mask:#x} is none of {ARGUMENT_BITS} bits with one of them set")
    if equals < 0 or equals & ~mask:
        raise invalid(f"{call}: {equals:#x} can never be found under mask {mask:#x}")
