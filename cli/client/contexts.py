"""The client configuration: which nodes there are, and as whom to speak to them.

Here: the search order of the file, its checks and the reading of certificates. Not here: connecting (`channel.py`).
The format is cli.md's: `version: "3.0"` and `nodes: NAME: {address, cert, key, ca, nodeId}`; cert, key and ca hold PEM
text, or a path that is relative to the directory of the file.
"""

import difflib
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import yaml

from common.errors import JobletError, invalid

VERSION: Final = "3.0"
CONFIG_BYTES_MAX: Final = 1024 * 1024
_REQUIRED: Final = ("address", "cert", "key", "ca")
_KEYS: Final = (*_REQUIRED, "nodeId")
_PEM_MARK: Final = "-----BEGIN "
_PORT_MAX: Final = 65535
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})", re.ASCII)


class Context(NamedTuple):
    """One node, and the identity to use with it. `cert`, `key` and `ca` are PEM.

    `cert_name` is the name of the certificate's file without ending; empty when the configuration holds its text.
    """

    name: str
    address: str
    cert: bytes
    key: bytes
    ca: bytes
    node_id: str
    warnings: tuple[str, ...] = ()
    cert_name: str = ""


class NodeEntry(NamedTuple):
    """A context as the file has it: nothing is read yet."""

    name: str
    address: str
    node_id: str
    material: Mapping[str, str]


def search_path() -> tuple[Path, ...]:
    """Where a configuration is looked for, first to last."""
    try:
        home = [Path("~/.rnx/rnx-config.yml").expanduser()]
    except RuntimeError:  # a user without an entry in passwd(5), and no HOME: as in some containers
        home = []
    return (
        Path("rnx-config.yml"),
        *home,
        Path("/etc/joblet/rnx-config.yml"),
        Path("/opt/joblet/rnx-config.yml"),
    )


def find_config(config: Path | None) -> Path:
    """`config` itself, or the first file of the search path. `JobletError(INVALID)` when there is none."""
    if config is not None:
        return config
    for candidate in search_path():
        try:
            if candidate.is_file():
                return candidate
        except PermissionError:
            continue  # a directory that is not ours to enter holds no configuration for us
    places = ", ".join(str(candidate) for candidate in search_path())
    raise invalid("no client configuration found", f"give --config FILE, or make one of {places}")


def read_nodes(path: Path) -> dict[str, NodeEntry]:
    """Every context of the file at `path`, by name. `JobletError(INVALID)` names the file and the key."""
    document = _document(path)
    version = document.get("version", VERSION)
    if version != VERSION:
        raise invalid(f"{path}: version is {version!r}", f'this rnx reads version "{VERSION}"')
    _refuse_unknown(document, ("version", "nodes"), str(path))
    nodes = document.get("nodes")
    if not isinstance(nodes, dict) or not nodes:
        raise invalid(f"{path}: nodes is missing or empty", "add at least the context `default`")
    return {str(name): _entry(path, str(name), fields) for name, fields in nodes.items()}


def load_context(config: Path | None, node: str) -> Context:
    """The context `node` of the configuration, with its certificates read.

    Raises `JobletError(INVALID)` that names file and key when anything is missing, malformed or unreadable.
    """
    from cli.client.renewal import ending  # noqa: PLC0415  # 50 ms that --help, completion and `rnx nodes` need not pay

    path = find_config(config)
    nodes = read_nodes(path)
    entry = nodes.get(node)
    if entry is None:
        raise invalid(f"{path} has no context {node!r}", f"it has {', '.join(sorted(nodes))}")
    warnings: list[str] = []
    material = {key: _pem(path, entry, key, warnings) for key in ("cert", "key", "ca")}
    name = _cert_name(entry)
    if warning := ending(material["cert"], name, now_ns=time.time_ns()):
        warnings.append(warning)
    return Context(
        entry.name, entry.address, **material, node_id=entry.node_id, warnings=tuple(warnings), cert_name=name
    )


def _document(path: Path) -> dict[object, object]:
    try:
        with path.open("rb") as file:
            text = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as cause:
        raise invalid(f"cannot read the client configuration {path}", cause.strerror or str(cause)) from cause
    if len(text) > CONFIG_BYTES_MAX:
        raise invalid(f"{path} is too large for a client configuration", f"at most {CONFIG_BYTES_MAX} bytes")
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as cause:  # ValueError: bytes, or a date, that there are not
        where = getattr(cause, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise invalid(f"{path} is no valid YAML{line}", getattr(cause, "problem", "") or "correct it") from cause
    if not isinstance(document, dict):
        raise invalid(f"{path} holds no settings", 'it begins with version: "3.0" and nodes:')
    return document


def _refuse_unknown(fields: Mapping[object, object], known: tuple[str, ...], where: str) -> None:
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise invalid(f"{where}: unknown key {str(key)!r}", hint)


def _entry(path: Path, name: str, fields: object) -> NodeEntry:
    where = f"{path}: nodes.{name}"
    if not isinstance(fields, dict):
        raise invalid(f"{where} is no mapping", f"it needs {', '.join(_REQUIRED)}")
    _refuse_unknown(fields, _KEYS, where)
    values: dict[str, str] = {}
    for key in _REQUIRED:
        value = fields.get(key)
        if not isinstance(value, str) or not value.strip():
            raise invalid(f"{where}.{key} is missing", "it holds text")
        values[key] = value.strip()
    address = values.pop("address")
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[1]) <= _PORT_MAX:
        raise invalid(f"{where}.address {address[:80]!r} is malformed", "write HOST:PORT, such as 127.0.0.1:50051")
    return NodeEntry(name, address, str(fields.get("nodeId") or ""), values)


def _pem(config: Path, entry: NodeEntry, key: str, warnings: list[str]) -> bytes:
    value = entry.material[key]
    where = f"{config}: nodes.{entry.name}.{key}"
    secret = key == "key"
    if _PEM_MARK in value:
        if secret:
            _warn_when_open(config, f"{config} holds a private key and", warnings)
            _refuse_encrypted(value.encode("utf-8"), where)
        return value.encode("utf-8") + b"\n"
    try:
        path = config.parent / Path(value).expanduser()
    except RuntimeError as cause:
        raise invalid(
            f"{where}: cannot read {value}", "nobody knows whose home that is: write the whole path"
        ) from cause
    try:
        content = path.read_bytes()
    except ValueError as cause:
        raise invalid(f"{where}: {value!r} is no path", "write a path, or PEM text") from cause
    except OSError as cause:
        raise invalid(f"{where}: cannot read {path}", cause.strerror or str(cause)) from cause
    if _PEM_MARK.encode() not in content:
        raise _not_pem(where, path)
    if secret:
        _warn_when_open(path, f"the private key {path}", warnings)
        _refuse_encrypted(content, where)
    return content


def _cert_name(entry: NodeEntry) -> str:
    value = entry.material["cert"]
    return "" if _PEM_MARK in value else Path(value).stem


def _not_pem(where: str, path: Path) -> JobletError:
    return invalid(f"{where}: {path} is no PEM file", f"it must contain {_PEM_MARK}…")


def _refuse_encrypted(key: bytes, where: str) -> None:
    """Nobody is there to type a passphrase; gRPC would fail without a word. RFC 7468, section 11, and RFC 1421."""
    if b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in key or b"Proc-Type: 4,ENCRYPTED" in key:
        raise invalid(
            f"{where}: the private key is encrypted", "decrypt it: openssl pkey -in KEY -out PLAIN, mode 0600"
        )


def _warn_when_open(path: Path, what: str, warnings: list[str]) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & stat.S_IROTH:
        warnings.append(f"{what} can be read by every user of this machine: chmod o= {path}")
