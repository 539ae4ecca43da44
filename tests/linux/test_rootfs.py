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
WRITER = (
    "#include <errno.h>\n#include <fcntl.h>\n#include <stdio.h>\n#include <string.h>\nint main(int c, char **v) {"
    ' for (int i = 1; i < c; i++) puts(open(v[i], O_WRONLY | O_CREAT, 0600) < 0 ? strerror(errno) : "wrote"); }\n'
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


@pytest.mark.threat("E09")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_directory_that_everybody_may_write_is_not_written(directory: Path, tmp_path: Path) -> None:
    """What the host's modes would allow a job, its mounts do not: no file of its root is changed, made or removed."""
    writer = directory / "bin" / "writer"
    source = tmp_path / "writer.c"
    source.write_text(WRITER)
    subprocess.run(["gcc", "-static", "-o", writer, source], check=True, timeout=60)
    content = writer.read_bytes()
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o777)
    before = sorted(str(path) for path in directory.rglob("*"))
    base = tmp_path / "base"
    base.mkdir()
    control = subprocess.run([writer, tmp_path / "open"], capture_output=True, check=True, timeout=60)
    assert control.stdout == b"wrote\n", "unprotected it can"
    places = ("/bin/new", "/bin/probe", "/bin/writer", "/sbin/new", "/secret/new", "/etc/ssl/certs/ca.pem", "/new")
    lines = run(base, str(directory), "/bin/writer", *places).stdout.decode().splitlines()
    assert len(lines) == len(places)
    assert set(lines) <= {"Read-only file system", "Permission denied", "Text file busy"}, lines
    assert lines.count("Read-only file system") >= 5, lines
    assert (writer.read_bytes(), sorted(str(path) for path in directory.rglob("*"))) == (content, before)


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
