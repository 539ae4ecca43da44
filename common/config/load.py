"""From a YAML file to `Settings`, or to an error that names the key.

Here: reading, checking, overriding, and showing what holds in the end. Not here: the settings and their defaults
(`settings.py`) and the paths that follow from them (`layout.py`). What cannot be honoured is refused, never ignored;
a person who mistypes a key is told the nearest known one. YAML 1.1 as PyYAML's safe loader reads it.
"""

import difflib
import socket
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Final, get_args, get_origin

import msgspec
import yaml

from common.config.identity import check_identity
from common.config.layout import layout_of
from common.config.limits import check_limits
from common.config.networks import check_networks
from common.config.quotas import check_quotas
from common.config.ranges import check_numbers
from common.config.settings import DEFAULT_BASE_DIR, VERSION, PersistIpc, Section, Settings
from common.config.yamltext import parse_yaml
from common.errors import JobletError, invalid, not_found
from common.identifiers import parse_name, parse_node_id

CONFIG_FILE: Final = "joblet-config.yml"
CONFIG_BYTES_MAX: Final = 1024 * 1024

PEM_MARK: Final = "-----BEGIN"
HIDDEN: Final = "(PEM text, hidden)"


def load_settings(path: Path | None, *, base_dir: Path | None = None, port: int | None = None) -> Settings:
    """The settings of `path`, with the command line's `base_dir` and `port` in place of the file's.

    Without a path: `joblet-config.yml` of `base_dir` or else of /opt/joblet where it exists, else the defaults.
    Raises JobletError: NOT_FOUND for a missing file, INVALID for everything wrong in it.
    """
    file = path if path is not None else _default_file(base_dir)
    settings = settings_of(_read(file), source=str(file)) if file is not None else Settings()
    if base_dir is not None:
        joblet = msgspec.structs.replace(settings.joblet, base_dir=str(base_dir.absolute()))
        settings = msgspec.structs.replace(settings, joblet=joblet)
    if port is not None:
        settings = msgspec.structs.replace(settings, server=msgspec.structs.replace(settings.server, port=port))
    try:
        _check_values(settings)
    except JobletError as error:
        where = f"{file}: " if file is not None else ""
        raise JobletError(error.reason, where + error.message, detail=error.detail) from error
    return settings


def settings_of(text: str, *, source: str) -> Settings:
    """The settings in a YAML text; `source` names it in errors. Values are checked for type, not yet for sense."""
    try:
        document = parse_yaml(text)
        _check_section(document, Settings, "")
        return msgspec.convert(_without_empty_sections(document, Settings), Settings)
    except JobletError as error:
        raise JobletError(error.reason, f"{source}: {error.message}", detail=error.detail) from error
    except (yaml.YAMLError, ValueError, RecursionError) as cause:  # ValueError: a date that there is not
        raise invalid(f"{source}: not YAML: {_one_line(str(cause))}", "correct the file") from cause


def node_id(settings: Settings) -> str:
    """`server.nodeId`, or the host's name where it is not set."""
    return parse_node_id(settings.server.node_id or socket.gethostname())


def notices(settings: Settings) -> tuple[str, ...]:
    """What is accepted but deserves a warning, one sentence each."""
    found = []
    if settings.persist.storage.cloudwatch.log_stream_prefix:
        found.append(
            "persist.storage.cloudwatch.log_stream_prefix is deprecated and ignored: streams are named "
            "{jobId}-stdout and {jobId}-stderr"
        )
    ipc, usual = settings.persist.ipc, PersistIpc()
    if ipc.max_connections != usual.max_connections:
        found.append("persist.ipc.max_connections has no effect: the executor is the one writer")
    if ipc.max_message_size != usual.max_message_size:
        found.append("persist.ipc.max_message_size has no effect: the protocol's own bound is 134217728")
    return tuple(found)


def effective(settings: Settings) -> dict[str, Any]:
    """What holds in the end, under the names of the file: empty values filled in, PEM text hidden."""
    layout = layout_of(settings)
    shown: dict[str, Any] = msgspec.to_builtins(settings)
    security = shown["security"]
    for key, file in (("serverCert", "server.crt"), ("serverKey", "server.key"), ("caCert", "ca.crt")):
        value = security[key]
        security[key] = HIDDEN if PEM_MARK in value else value or str(layout.certs / file)
    shown["server"]["nodeId"] = node_id(settings)
    persist = shown["persist"]
    persist["server"]["grpc_socket"] = str(layout.persist_grpc)
    persist["ipc"]["socket"] = str(layout.run / "persist-ipc.sock")
    persist["storage"]["base_dir"] = settings.persist.storage.base_dir or settings.joblet.base_dir
    persist["storage"]["local"]["logs"]["directory"] = str(layout.logs)
    persist["storage"]["local"]["metrics"]["directory"] = str(layout.metrics)
    shown["joblet"]["volumes"]["directory"] = str(layout.volumes)
    for section in ("limits", "quotas", "volumes"):
        shown["joblet"][section] = _what_is_set(shown["joblet"][section])
    return shown


def dotted_keys(section: type[Section] = Settings, prefix: str = "") -> Iterator[str]:
    """Every key of the file by its dotted name, sections included."""
    for field in msgspec.structs.fields(section):
        yield prefix + field.encode_name
        if _is_section(field.type):
            yield from dotted_keys(field.type, f"{prefix}{field.encode_name}.")


def _default_file(base_dir: Path | None) -> Path | None:
    file = (base_dir if base_dir is not None else Path(DEFAULT_BASE_DIR)) / CONFIG_FILE
    return file if file.exists() else None


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError as cause:
        raise not_found(f"no configuration file {file}", "give an existing file, or none for the defaults") from cause
    except OSError as cause:
        raise invalid(f"cannot read configuration file {file}: {cause.strerror}") from cause
    if len(content) > CONFIG_BYTES_MAX:
        raise invalid(f"{file} is larger than {CONFIG_BYTES_MAX} bytes", "this is no configuration file")
    try:
        return content.decode()
    except UnicodeDecodeError as cause:
        raise invalid(f"{file} is not UTF-8: byte {cause.start}", "save it as UTF-8") from cause


def _check_section(document: Any, section: type[Section], prefix: str) -> None:
    if document is None:  # `persist:` with nothing below it
        return
    if not isinstance(document, dict):
        raise invalid(f"{prefix.rstrip('.') or 'the file'} is {_shown(document)}", "expected: a section with keys")
    fields = {field.encode_name: field for field in msgspec.structs.fields(section)}
    for key, value in document.items():
        field = fields.get(key) if isinstance(key, str) else None
        if field is None:
            raise invalid(f"unknown key {prefix}{key}", f"the nearest known key is {_nearest(str(key), prefix)}")
        if _is_section(field.type):
            _check_section(value, field.type, f"{prefix}{key}.")
        else:
            _check_leaf(value, field.type, prefix + key)


def _check_leaf(value: Any, expected: Any, name: str) -> None:
    try:
        msgspec.convert(value, expected)
    except msgspec.ValidationError as cause:
        raise invalid(f"{name} is {_shown(value)}", f"expected: {_described(expected)}") from cause


def _check_values(settings: Settings) -> None:
    if settings.version != VERSION:
        raise invalid(f"version is {settings.version[:20]!r}", f'expected: "{VERSION}"')
    _check_words(settings)
    check_numbers(msgspec.to_builtins(settings))
    if settings.persist.storage.type == "cloudwatch" and not settings.server.node_id:
        raise invalid("server.nodeId is not set", "CloudWatch storage needs one, unique among the nodes")
    check_identity(settings.security.identity)
    check_limits(settings.joblet.limits)
    check_quotas(settings.joblet.quotas)
    check_networks(settings.joblet.networks)
    _check_paths(settings)


def _check_words(settings: Settings) -> None:
    """Names and addresses that no service could start with."""
    key = "server.nodeId"
    try:
        node_id(settings)
        key = "joblet.cgroup_parent"
        parse_name(settings.joblet.cgroup_parent, "control group")
    except JobletError as error:
        raise invalid(f"{key}: {error.message}", error.detail) from error
    if not settings.server.address:
        raise invalid("server.address is empty", "expected: 0.0.0.0 for all addresses, or one of this host")
    output = settings.logging.output
    if output not in ("stdout", "stderr") and not output.startswith("/"):
        raise invalid(f"logging.output is {output[:200]!r}", "expected: stdout, stderr or an absolute path")


def _check_paths(settings: Settings) -> None:
    storage = settings.persist.storage
    for name, path in (
        ("joblet.base_dir", settings.joblet.base_dir),
        ("joblet.volumes.directory", settings.joblet.volumes.directory),
        ("persist.storage.base_dir", storage.base_dir),
        ("persist.storage.local.logs.directory", storage.local.logs.directory),
        ("persist.storage.local.metrics.directory", storage.local.metrics.directory),
        ("persist.server.grpc_socket", settings.persist.server.grpc_socket),
    ):
        if path and (not path.startswith("/") or "\0" in path or ".." in Path(path).parts):
            raise invalid(f"{name} is {path[:200]!r}", "expected: an absolute path without ..")
    for path in settings.joblet.jobs.read_only_paths:
        if not path.startswith("/") or ".." in Path(path).parts:
            raise invalid(f"joblet.jobs.read_only_paths has {path[:200]!r}", "expected: absolute paths without ..")
    if not settings.joblet.base_dir:
        raise invalid("joblet.base_dir is empty", "expected: an absolute path")
    rootfs = settings.joblet.jobs.rootfs
    if rootfs not in ("host", "busybox") and (not rootfs.startswith("/") or ".." in Path(rootfs).parts):
        raise invalid(f"joblet.jobs.rootfs is {rootfs[:200]!r}", "expected: host, busybox, or an absolute path")
    ipc, run = settings.persist.ipc, layout_of(settings).run
    if ipc.socket and Path(ipc.socket) != run / "persist-ipc.sock":
        raise invalid(
            f"persist.ipc.socket is {ipc.socket[:200]!r}",
            f"the socket follows the base directory: leave it out, or write {run / 'persist-ipc.sock'}",
        )


def _what_is_set(section: dict[str, Any]) -> dict[str, Any]:
    """`section` without what is not set; a hundred lines of null tell nobody anything."""
    inside = {key: _what_is_set(value) if isinstance(value, dict) else value for key, value in section.items()}
    return {key: value for key, value in inside.items() if value not in (None, {})}


def _without_empty_sections(document: Any, section: type[Section]) -> dict[str, Any]:
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(section)}
    return {
        key: _without_empty_sections(value, fields[key]) if _is_section(fields[key]) else value
        for key, value in (document or {}).items()
    }


def _nearest(key: str, prefix: str) -> str:
    """Among the keys of the same section first, then by the last word among all keys, whatever is most alike."""
    known = list(dotted_keys())
    siblings = [name for name in known if name.rpartition(".")[0] == prefix.rstrip(".")]
    for candidates, cutoff in ((siblings, 0.6), (known, 0.6), (siblings, 0.0)):
        words = {name.rpartition(".")[2].lower(): name for name in reversed(candidates)}
        match = difflib.get_close_matches(key.lower(), list(words), n=1, cutoff=cutoff)
        if match:
            return words[match[0]]
    return known[0]


def _is_section(expected: Any) -> bool:
    return isinstance(expected, type) and issubclass(expected, Section)


def _described(expected: Any) -> str:
    words = {str: "text (put it in quotes)", int: "a whole number", bool: "true or false"}
    if expected in words:
        return words[expected]
    alternatives = [each for each in get_args(expected) if each is not NoneType]
    if len(alternatives) == 1 and NoneType in get_args(expected):
        return _described(alternatives[0])
    match get_origin(expected):
        case origin if origin is dict:
            return "a map of text to text"
        case origin if origin is tuple:
            return "a list of texts"
        case _:
            return " or ".join(repr(word) for word in get_args(expected))


def _shown(value: Any) -> str:
    return f"{_one_line(repr(value))} ({'nothing' if value is None else type(value).__name__})"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
