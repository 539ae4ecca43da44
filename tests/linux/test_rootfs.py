"""What a job's root can be made of: the host's programs, a directory, busybox."""

import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from common.config.settings import Jobs
from common.errors import JobletError, Reason
from services.executor.rootfs import Rootfs
from tests.linux.sandboxes import IDENTITY, Result, Sandboxes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

STATIC = (
    "#include <stdio.h>\n#include <sys/stat.h>\nint main(int c, char **v) { struct stat s; for (int i = 1; i < c; i++)"
    ' printf("%s %s\\n", v[i], stat(v[i], &s) ? "missing" : s.st_uid ? "other" : "root"); return 0; }\n'
)


def run(base: Path, rootfs: str, *argv: str) -> Result:
    """A job in such a root."""
    with Sandboxes(base) as sandboxes:
        joblet = msgspec.structs.replace(sandboxes.settings.joblet, jobs=Jobs(rootfs=rootfs))
        sandboxes.settings = msgspec.structs.replace(sandboxes.settings, joblet=joblet)
        return sandboxes.run(*argv)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A root of one static program, a link, and things that do not belong into a job."""
    root = tmp_path / "image"
    for name in ("bin", "etc/ssl/certs", "proc", "dev", "sys", "secret"):
        (root / name).mkdir(parents=True)
    source = tmp_path / "probe.c"
    source.write_text(STATIC)
    subprocess.run(["gcc", "-static", "-o", root / "bin" / "probe", source], check=True, timeout=60)
    (root / "etc" / "shadow").write_text("root:x")
    (root / "etc" / "ssl" / "certs" / "ca.pem").write_text("ca")
    (root / "sbin").symlink_to("bin")
    (root / "out").symlink_to("/etc/shadow")
    return root


@pytest.mark.threat("A26")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_directory_is_the_root(directory: Path, tmp_path: Path) -> None:
    """Its programs and links are there; its /etc, /dev, /proc are not, nor anything of the host's."""
    base = tmp_path / "base"
    base.mkdir()
    paths = ("/sbin/probe", "/etc/ssl/certs/ca.pem", "/secret", "/etc/passwd", "/etc/shadow", "/usr", "/sys", "/out")
    lines = run(base, str(directory), "/bin/probe", *paths).stdout.decode().splitlines()
    found = dict(line.split() for line in lines)
    assert found == {
        "/sbin/probe": "root",  # id-mapped: root's files are the root's of the job
        "/etc/ssl/certs/ca.pem": "root",
        "/secret": "root",
        "/etc/passwd": "root",
        "/etc/shadow": "missing",
        "/usr": "missing",
        "/sys": "missing",
        "/out": "missing",  # the link is a link of the job's root: it leads to no file of the host
    }


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox")
def test_busybox_is_all_there_is(tmp_path: Path) -> None:
    """One static program under its many names."""
    result = run(tmp_path, "busybox", "sh", "-c", "ls / | tr '\\n' ' '; id -u; readlink /bin/ls; ls /usr")
    assert result.stdout.split() == b"bin dev etc proc tmp volumes work 1000 busybox".split()
    assert b"No such file" in result.stderr


def test_a_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """At the start of the executor, with the name of the setting."""
    with pytest.raises(JobletError) as raised:
        Rootfs(Jobs(rootfs=str(tmp_path / "none")))
    assert raised.value.reason is Reason.PRECONDITION
    assert "joblet.jobs.rootfs" in raised.value.message


def test_the_hosts_root_is_the_default() -> None:
    """Read-only, part by part."""
    texts = [part.describe() for part in Rootfs(Jobs()).parts(IDENTITY.range_first)]
    assert texts[0].startswith("bind /usr of the host read-only")
