"""What `joblet up` writes into an empty base directory: certificates, a configuration, a client configuration.

What exists is left alone, but for one thing: the client configuration follows the port, because `--port 0` takes
another one each time.
"""

import socket
from pathlib import Path
from typing import Any, Final

import yaml

from cli.joblet.certfiles import FIRST_CLIENTS, init, write_whole
from common.config.layout import Layout
from common.config.load import CONFIG_FILE, node_id
from common.config.settings import VERSION, Settings
from common.config.yamltext import parse_yaml
from common.errors import JobletError, invalid, precondition

CLIENT_CONFIG_FILE: Final = "rnx-config.yml"
LOOPBACK: Final = "127.0.0.1"

_CONFIG_HEAD: Final = "# joblet: settings of this node. Every key and its default: docs/configuration.md\n"
_CLIENT_HEAD: Final = (
    "# rnx: contexts of this node. `joblet up` keeps the port of the addresses on 127.0.0.1 up to date.\n"
)


def first_files(settings: Settings, layout: Layout, *, own_config: bool) -> tuple[str, ...]:
    """Make what is missing in the base directory; what was made, one sentence each.

    `own_config`: the operator named a configuration file, so none is written. Raises JobletError.
    """
    made = []
    security = settings.security
    ours = not (security.server_cert or security.server_key or security.ca_cert)
    if ours and not (layout.certs / "ca.crt").exists():
        init(layout.certs)
        made.append(f"made a CA, a server certificate and client certificates in {layout.certs}")
    config = layout.base / CONFIG_FILE
    if not own_config and not config.exists():
        write_whole(config, (_CONFIG_HEAD + _dump(_first_config(settings))).encode(), mode=0o600)
        made.append(f"wrote {config}")
    return tuple(made)


def client_config(settings: Settings, layout: Layout, port: int) -> Path | None:
    """The client configuration with the present port, made where it is missing.

    None when there is none and none can be made, because the certificates are the operator's own.
    """
    file = layout.base / CLIENT_CONFIG_FILE
    contexts = [client for client in FIRST_CLIENTS if (layout.certs / f"{client.file}.crt").exists()]
    if not file.exists() and not contexts:
        return None
    document: dict[str, Any] = _read(file) if file.exists() else {"version": VERSION, "nodes": {}}
    nodes = document["nodes"]
    if not nodes:
        for client in contexts:
            nodes[client.file] = {
                "address": f"{LOOPBACK}:{port}",
                "cert": str(layout.certs / f"{client.file}.crt"),
                "key": str(layout.certs / f"{client.file}.key"),
                "ca": str(layout.certs / "ca.crt"),
                "nodeId": node_id(settings),
            }
    for client in FIRST_CLIENTS:
        node = nodes.get(client.file)
        if isinstance(node, dict) and str(node.get("address", "")).rpartition(":")[0] == LOOPBACK:
            node["address"] = f"{LOOPBACK}:{port}"
    content = (_CLIENT_HEAD + _dump(document)).encode()
    if not file.exists() or file.read_bytes() != content:
        write_whole(file, content, mode=0o600)
    return file


def free_port(address: str) -> int:
    """A TCP port of `address` that nobody listens on at this moment."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as cause:
            raise precondition(
                f"cannot listen on {address}: {cause.strerror}", "set server.address to an address of this host"
            ) from cause
        port: int = probe.getsockname()[1]
        return port


def _first_config(settings: Settings) -> dict[str, Any]:
    return {
        "version": VERSION,
        "server": {
            "nodeId": node_id(settings),
            "address": settings.server.address,
            "port": settings.server.port or 50051,
        },
        "logging": {"level": settings.logging.level, "format": settings.logging.format},
        "joblet": {"base_dir": settings.joblet.base_dir},
        "persist": {"storage": {"type": settings.persist.storage.type}},
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        document = parse_yaml(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, JobletError) as cause:
        raise invalid(f"{file} cannot be read: {cause}", "correct it, or remove it and start again") from cause
    if not isinstance(document, dict) or not isinstance(document.get("nodes"), dict):
        raise invalid(f"{file} has no nodes", "correct it, or remove it and start again")
    return document


def _dump(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
