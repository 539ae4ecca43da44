"""What joblet is made of, and what it never does: no network of its own, no shell, no download, no unpinned package."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import zmq

from common.bus.zeromq import ZeroMQ
from common.config.load import load_settings
from common.errors import JobletError
from common.messages.topics import ENDPOINTS, Pattern

ROOT: Final = Path(__file__).parents[2]
SHIPPED: Final = ("common", "services", "cli", "worker", "tools")
LOCKS: Final = ("requirements.lock", "requirements-dev.lock")

SHELLS: Final = frozenset(
    {
        *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
        *("asyncio.create_subprocess_shell", "pty.spawn", "commands.getoutput"),
    }
)
STARTERS: Final = frozenset(
    {*("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_call", "subprocess.check_output")}
)
FETCHERS: Final = frozenset({"urllib.request", "http.client", "ftplib", "requests", "httpx", "aiohttp", "pip"})
"""Modules that fetch something from somewhere. `tools/kernel_lane` asks apt, by its program."""


def sources() -> Iterator[tuple[Path, ast.Module]]:
    """Every module that is installed or runs beside it."""
    for folder in SHIPPED:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def shell_calls(tree: ast.AST) -> list[int]:
    """Lines of calls in which a shell would read a text."""
    found = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        asked = [word for word in call.keywords if word.arg == "shell"]
        texts = [first for first in call.args[:1] if isinstance(first, ast.Constant | ast.JoinedStr)]
        if name in SHELLS or asked or (name in STARTERS and texts):
            found.append(call.lineno)
    return found


def imports(tree: ast.AST) -> set[str]:
    """Modules by their full names."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module), names=aliases, level=0):
                names |= {module} | {f"{module}.{alias.name}" for alias in aliases}
    return names


@pytest.mark.threat("E10")
def test_no_text_reaches_a_shell() -> None:
    """Programs are started by lists of words; nothing that a client chose can become a part of a command line."""
    assert shell_calls(ast.parse("subprocess.run(f'ls {x}', shell=True)\nos.system(x)\nsubprocess.Popen('ls')")) == [
        1,
        2,
        3,
    ]
    assert {str(path): lines for path, tree in sources() if (lines := shell_calls(tree))} == {}


@pytest.mark.threat("E08")
@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_by_its_hash(name: str) -> None:
    """One exact version each, with at least one SHA-256; no other place to get it from than the installer's own."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    pinned = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9_.-]+)(\[[a-z,]+\])?==[^\s;]+( ;[^-]+)?\s+--hash=sha256:[0-9a-f]{64}\b", line)
        assert match, line[:100]
        pinned[re.sub(r"[-_.]+", "-", match[1]).lower()] = line
    assert len(pinned) == len(lines), "none twice"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.sub(r"[-_.]+", "-", each).lower() for each in project["dependencies"]}
    assert wanted <= pinned.keys()


@pytest.mark.threat("E08")
def test_what_is_installed_is_what_is_pinned() -> None:
    """Whoever follows the Makefile or the manual installs nothing without a hash."""
    for place in ("Makefile", "docs/operations.md"):
        commands = [line for line in (ROOT / place).read_text().splitlines() if re.search(r"\bpip install\b", line)]
        assert commands, place
        for command in commands:
            assert "--require-hashes" in command or "--no-deps" in command, command


@pytest.mark.threat("E08")
def test_nothing_is_downloaded_at_run_time() -> None:
    """No module of ours can fetch anything."""
    assert imports(ast.parse("import urllib.request\nfrom http import client")) & FETCHERS == {
        "urllib.request",
        "http.client",
    }
    assert {str(path): found for path, tree in sources() if (found := imports(tree) & FETCHERS)} == {}


@pytest.mark.threat("E07")
def test_messages_pass_through_files_only(tmp_path: Path) -> None:
    """Every endpoint of the table is bound to a socket file; the configuration cannot name another kind of place."""
    opened = ZeroMQ(tmp_path)
    try:
        for endpoint in ENDPOINTS:
            (opened.pull if endpoint.pattern is Pattern.PUSH_PULL else opened.publisher)(endpoint)
            assert (tmp_path / endpoint.file).is_socket()
    finally:
        opened.close()
    assert zmq.zmq_version_info() >= (4, 3, 3), "CVE-2020-15166"
    for text in (
        "persist: {ipc: {socket: 'tcp://0.0.0.0:5555'}}",
        "persist: {server: {grpc_socket: 'tcp://0.0.0.0:5555'}}",
        "joblet: {base_dir: 'tcp://0.0.0.0:5555'}",
    ):
        (tmp_path / "joblet-config.yml").write_text(f'version: "3.0"\n{text}\n')
        with pytest.raises(JobletError, match="tcp://"):
            load_settings(tmp_path / "joblet-config.yml")
