"""Rules for all tests: nothing is left behind, and nothing is skipped in silence.

Belongs here: hooks and fixtures that hold for every folder. Does not belong here: fixtures of one folder (they stand
in that folder's conftest.py).

A test below `LEAK_CHECKED` is compared with the host before it (tests/leaks.py). A skipped test is told at the end with
its reason; in CI (environment CI=true) a skip is a failure unless its reason names a row of `EXPECTED_SKIPS`, and that
row's probe finds by trying that this host really lacks the thing.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

from tests.leaks import CGROUP_ROOT, left_behind, snapshot
from tests.waiting import SLOWNESS, NeverHappened, wait_for

settings.register_profile("joblet", deadline=None)  # a busy machine is no failure
settings.load_profile("joblet")

TESTS: Final = Path(__file__).parent
LEAK_CHECKED: Final = frozenset({"linux", "e2e", "fault"})
SETTLE_S: Final = 10.0
"""How long things may take to go after a test: the kernel removes a dying control group when it likes."""


def _missing_program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is None


def _no_cgroup_v2() -> bool:
    controllers = CGROUP_ROOT / "cgroup.controllers"
    return not controllers.exists() or "memory" not in controllers.read_text().split()


def _no_mount_namespace() -> bool:
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0


def _no_cgroup_v1() -> bool:
    return not (CGROUP_ROOT / "memory" / "memory.limit_in_bytes").exists()


def _no_disk() -> bool:
    return not any(Path("/sys/block").glob("[vsnx]*"))


def _no_bfq() -> bool:
    return not any("bfq" in each.read_text() for each in Path("/sys/block").glob("*/queue/scheduler"))


def _no_device_mapper() -> bool:
    return "device-mapper" not in Path("/proc/misc").read_text()


def _no_dm_crypt() -> bool:
    from services.volumes.encryption.dmcrypt import DmCrypt  # of a few tests only

    try:
        DmCrypt().try_out()
    except Exception:  # noqa: BLE001  # whatever it is, it cannot be had
        return True
    return False


def _no_project_quotas() -> bool:
    with tempfile.NamedTemporaryFile() as image, tempfile.TemporaryDirectory() as point:
        os.truncate(image.name, 16 * 2**20)
        make = ["mkfs.ext4", "-q", "-F", "-O", "quota,project", image.name]
        mount = ["unshare", "--mount", "mount", "-o", "loop,prjquota", image.name, point]
        return any(subprocess.run(each, capture_output=True, check=False).returncode for each in (make, mount))


EXPECTED_SKIPS: Final[dict[str, Callable[[], bool]]] = {
    "needs root": lambda: os.geteuid() != 0,
    "needs to be unprivileged": lambda: os.geteuid() == 0,
    "needs cgroups v2": _no_cgroup_v2,
    "needs cgroups v1": _no_cgroup_v1,
    "only root can drop privileges": lambda: os.geteuid() != 0,
    "does not let us mount": _no_mount_namespace,
    "needs perl": _missing_program("perl"),
    "needs openssl": _missing_program("openssl"),
    "needs jq": _missing_program("jq"),
    "needs dm-crypt": _no_dm_crypt,
    "needs project quotas": _no_project_quotas,
    "needs mkfs.btrfs": _missing_program("mkfs.btrfs"),
    "needs gcc": _missing_program("gcc"),
    "needs busybox": _missing_program("busybox"),
    "needs a disk": _no_disk,
    "needs a loop device": lambda: not Path("/dev/loop-control").exists(),
    "needs a device mapper": _no_device_mapper,
    "needs fscrypt": lambda: not Path("/sys/fs/ext4/features/encryption").exists(),
    "needs the BFQ scheduler": _no_bfq,
    "needs x86_64": lambda: os.uname().machine != "x86_64",
    "needs /usr/bin/python3": lambda: not Path("/usr/bin/python3").exists(),
}
"""Words of a skip reason → True when the host lacks it. A skip for another reason is unexpected."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What a test may take altogether grows with the slowness, as the deadlines within it do."""
    given = config.getoption("timeout")  # of the command line
    usual_s = float(config.getini("timeout") if given is None else given)
    for item in items if SLOWNESS != 1 else ():
        own = item.get_closest_marker("timeout")
        item.add_marker(pytest.mark.timeout((own.args[0] if own else usual_s) * SLOWNESS), append=False)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """A script that runs the tests in its background has them ignore SIGINT, and what they start would inherit that."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Descriptors, children, mounts, control groups and job directories are after the test what they were before.

    Fixtures of a wider scope are set up before this one and so are part of "before".
    """
    parts = request.path.relative_to(TESTS).parts
    if parts[0] not in LEAK_CHECKED:
        yield
        return
    base = tmp_path_factory.getbasetemp()
    before = snapshot(base)
    yield
    try:
        wait_for(lambda: not left_behind(before, snapshot(base)), timeout_s=SETTLE_S, what="the test's remains to go")
    except NeverHappened:
        remains = left_behind(before, snapshot(base))
        pytest.fail("left behind:\n  " + "\n  ".join(remains), pytrace=False)


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def expected_skip(reason: str) -> bool:
    """Whether the host really lacks what `reason` names."""
    return any(words in reason and lacking() for words, lacking in EXPECTED_SKIPS.items())


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"true", "1"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn an unexpected skip into a failure in CI."""
    report = yield
    if report.skipped and _in_ci() and not hasattr(report, "wasxfail"):
        reason = _skip_reason(report)
        if not expected_skip(reason):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped in CI for a reason that this host does not have: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell what this host could not run, and why."""
    reports = terminalreporter.stats.get("skipped", [])
    if not reports:
        return
    by_reason: dict[str, list[str]] = defaultdict(list)
    for report in reports:
        by_reason[_skip_reason(report)].append(report.nodeid)
    terminalreporter.section("not run on this host")
    for reason, tests in sorted(by_reason.items()):
        terminalreporter.line(f"{len(tests):4d}  {reason}")
        for test in sorted(tests)[:5]:
            terminalreporter.line(f"        {test}")
        if len(tests) > 5:
            terminalreporter.line(f"        and {len(tests) - 5} more")
