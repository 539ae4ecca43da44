"""The configuration file: what loads, what is refused and with which words, what holds in the end."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from common.config.layout import layout_of
from common.config.load import (
    CONFIG_BYTES_MAX,
    HIDDEN,
    dotted_keys,
    effective,
    load_settings,
    node_id,
    notices,
    settings_of,
)
from common.config.settings import Settings
from common.config.yamltext import ALIASES_MAX, DEPTH_MAX
from common.errors import JobletError, Reason

SINGLE_NODE_LOCAL = """
version: "3.0"
persist:
  storage:
    type: "local"
    base_dir: "/opt/joblet"
"""

SINGLE_NODE_CLOUDWATCH = """
version: "3.0"
server:
  nodeId: "node-1"
persist:
  storage:
    type: "cloudwatch"
    cloudwatch:
      region: ""
      log_group_prefix: "/joblet"
"""

MULTI_NODE_CLOUDWATCH = """
version: "3.0"
server:
  nodeId: "cluster-node-1"
  address: "0.0.0.0"
  port: 50051
persist:
  storage:
    type: "cloudwatch"
    cloudwatch:
      region: "eu-central-1"
      log_group_prefix: "/joblet-cluster"
      metric_dimensions:
        Cluster: "production"
        Node: "node-1"
"""

EVERYTHING_STATED = """
version: "3.0"
server: {nodeId: "node-1", address: "0.0.0.0", port: 50051}
logging: {level: "INFO", format: "text", output: "stdout"}
security: {serverCert: "/c/server.crt", serverKey: "/c/server.key", caCert: "/c/ca.crt"}
persist:
  server: {grpc_socket: "/opt/joblet/run/persist-grpc.sock", max_connections: 500}
  ipc: {socket: "/opt/joblet/run/persist-ipc.sock", max_connections: 10, max_message_size: 134217728}
  storage:
    type: "local"
    base_dir: "/opt/joblet"
    local:
      logs: {directory: "/opt/joblet/logs", format: "jsonl.gz"}
      metrics: {directory: "/opt/joblet/metrics", format: "jsonl.gz"}
    cloudwatch:
      region: ""
      log_group_prefix: "/joblet"
      metric_namespace: "Joblet/Production"
      metric_dimensions: {Environment: "production"}
      log_batch_size: 100
      metric_batch_size: 20
"""


def load(tmp_path: Path, text: str, **overrides: object) -> Settings:
    """The settings of a file with this text."""
    file = tmp_path / "joblet-config.yml"
    file.write_text(text)
    return load_settings(file, **overrides)  # type: ignore[arg-type]  # keyword arguments of load_settings


def refusal(tmp_path: Path, text: str) -> JobletError:
    """The error that loading this text raises."""
    with pytest.raises(JobletError) as caught:
        load(tmp_path, text)
    assert caught.value.reason is Reason.INVALID
    return caught.value


@pytest.mark.requirement("S0.39")
@pytest.mark.requirement("S0.31")
def test_the_three_deployments_load_as_written(tmp_path: Path) -> None:
    """Single node local, single node CloudWatch and multi-node CloudWatch, with the defaults for what they omit."""
    local = load(tmp_path, SINGLE_NODE_LOCAL)
    assert local.persist.storage.type == "local"
    assert layout_of(local).logs == Path("/opt/joblet/logs")

    single = load(tmp_path, SINGLE_NODE_CLOUDWATCH)
    assert single.persist.storage.cloudwatch.region == ""
    assert single.persist.storage.cloudwatch.log_group_prefix == "/joblet"
    assert node_id(single) == "node-1"

    multi = load(tmp_path, MULTI_NODE_CLOUDWATCH).persist.storage.cloudwatch
    assert multi.log_group_prefix == "/joblet-cluster"
    assert multi.metric_dimensions == {"Cluster": "production", "Node": "node-1"}
    assert multi.metric_namespace == "Joblet/Jobs"
    assert (multi.log_batch_size, multi.metric_batch_size) == (100, 20)


@pytest.mark.requirement("S0.13")
@pytest.mark.requirement("S0.32")
@pytest.mark.requirement("S0.33")
@pytest.mark.requirement("S0.34")
@pytest.mark.requirement("S0.35")
@pytest.mark.requirement("S0.36")
@pytest.mark.requirement("S0.37")
@pytest.mark.requirement("S0.25")
def test_every_key_that_the_sources_name_is_known(tmp_path: Path) -> None:
    """The whole file of the sources loads, and its stated defaults are ours."""
    settings = load(tmp_path, EVERYTHING_STATED)
    defaults = Settings()
    assert settings.persist.server.max_connections == defaults.persist.server.max_connections == 500
    assert settings.persist.ipc.max_message_size == defaults.persist.ipc.max_message_size == 134_217_728
    assert settings.persist.ipc.max_connections == defaults.persist.ipc.max_connections == 10
    assert settings.logging == defaults.logging
    assert (defaults.server.address, defaults.server.port) == ("0.0.0.0", 50051)  # noqa: S104  # the stated default
    assert settings.security.server_key == "/c/server.key"


@pytest.mark.requirement("S0.38")
def test_the_store_is_below_the_parents_base_directory_unless_told_otherwise(tmp_path: Path) -> None:
    """`persist.storage.base_dir` defaults to `joblet.base_dir`, and moves the store alone when given."""
    assert layout_of(load(tmp_path, "joblet: {base_dir: /srv/node}")).logs == Path("/srv/node/logs")
    layout = layout_of(load(tmp_path, "persist: {storage: {base_dir: /big}}"))
    assert (layout.logs, layout.jobs) == (Path("/big/logs"), Path("/opt/joblet/jobs"))


@pytest.mark.requirement("S1.3", "X10")
def test_volumes_are_where_the_sources_say_unless_told_otherwise(tmp_path: Path) -> None:
    """Below /var/lib of a node at its default place; a node elsewhere keeps to its own directory."""
    assert layout_of(Settings()).volumes == Path("/var/lib/joblet/volumes")
    assert layout_of(load(tmp_path, "joblet: {base_dir: /srv/node}")).volumes == Path("/srv/node/volumes")
    assert layout_of(load(tmp_path, "joblet: {volumes: {directory: /volumes}}")).volumes == Path("/volumes")


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("persist: {storage: {typ: local}}", "persist.storage.typ", "persist.storage.type"),
        ("server: {node_id: a}", "server.node_id", "server.nodeId"),
        ("joblet: {journal: {on_ful: drop}}", "joblet.journal.on_ful", "joblet.journal.on_full"),
        ("storage: {type: local}", "storage", "persist.storage"),
        ("log_group_prefix: /x", "log_group_prefix", "persist.storage.cloudwatch.log_group_prefix"),
        ("7: x", "7", "version"),
        ("joblet: {limits: {defaults: {pids: 1}}}", "joblet.limits.defaults", "joblet.limits.default"),
        ("joblet: {quotas: {stream: 1}}", "joblet.quotas.stream", "joblet.quotas.streams"),
        ("joblet: {quotas: {roles: {usr: {}}}}", "joblet.quotas.roles.usr", "joblet.quotas.roles.user"),
        (
            "security: {identity: {organisation: true}}",
            "security.identity.organisation",
            "security.identity.organization",
        ),
        (
            "joblet: {limits: {roles: {user: {max: {memory: 1}}}}}",
            "joblet.limits.roles.user.max.memory",
            "joblet.limits.roles.user.max.memory_bytes",
        ),
        ("joblet: {limits: {roles: {writers: {}}}}", "joblet.limits.roles.writers", "joblet.limits.roles.writer"),
    ],
)
def test_an_unknown_key_is_named_in_full_with_the_nearest_known_one(
    tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    """A mistyped or misplaced key never passes in silence."""
    error = refusal(tmp_path, text)
    assert f"unknown key {key}" in error.message
    if key != "7":  # nothing is near a number; then any known key is named
        assert error.detail == f"the nearest known key is {nearest}"


@pytest.mark.parametrize(
    ("text", "key", "value", "expected"),
    [
        ('server: {port: "80"}', "server.port", "'80'", "a whole number"),
        ("server: {port: 70000}", "server.port", "70000", "at most 65535"),
        ("server: {port: -1}", "server.port", "-1", "0 or more"),
        ("version: 3.0", "version", "3.0", "text"),
        ('version: "2.0"', "version", "2.0", '"3.0"'),
        ("logging: {level: LOUD}", "logging.level", "LOUD", "'DEBUG' or 'INFO'"),
        ("persist: {enabled: maybe}", "persist.enabled", "maybe", "true or false"),
        ("persist: [1]", "persist", "[1]", "a section"),
        ("persist: {storage: {type: tape}}", "persist.storage.type", "tape", "'local'"),
        ("joblet: {base_dir: relative}", "joblet.base_dir", "relative", "absolute path"),
        ("joblet: {jobs: {pids: 1}}", "joblet.jobs.pids", "1", "2 or more"),
        ("joblet: {jobs: {pids: 4194305}}", "joblet.jobs.pids", "4194305", "at most 4194304"),
        ("joblet: {jobs: {grace_ms: 86400001}}", "joblet.jobs.grace_ms", "86400001", "at most 86400000"),
        ("joblet: {jobs: {uid_first: 1000}}", "joblet.jobs.uid_first", "1000", "65536 or more"),
        ("joblet: {jobs: {work_bytes: 4095}}", "joblet.jobs.work_bytes", "4095", "4096 or more"),
        (
            "joblet: {jobs: {work_bytes: 8193, work_bytes_max: 8192}}",
            "joblet.jobs.work_bytes",
            "8193",
            "at most joblet.jobs.work_bytes_max, 8192",
        ),
        ("joblet: {jobs: {read_only_paths: [usr]}}", "joblet.jobs.read_only_paths", "usr", "absolute paths"),
        ("joblet: {cgroup_parent: a/b}", "joblet.cgroup_parent", "a/b", "letters, digits"),
        ("server: {nodeId: a b}", "server.nodeId", "a b", "letters, digits"),
        ('server: {address: ""}', "server.address", "empty", "of this host"),
        ("logging: {output: joblet.log}", "logging.output", "joblet.log", "an absolute path"),
        ("security: {reload_ms: 9}", "security.reload_ms", "9", "10 or more"),
        (
            "joblet: {grpc: {keepalive_time_ms: 2147483648}}",
            "joblet.grpc.keepalive_time_ms",
            "2147483648",
            "at most 2147483647",
        ),
        (
            "persist: {server: {max_connections: 2147483648}}",
            "persist.server.max_connections",
            "2147483648",
            "at most 2147483647",
        ),
        (
            "persist: {storage: {local: {compression_level: 4}}}",
            "persist.storage.local.compression_level",
            "4",
            "at most 3",
        ),
        ("persist: {storage: {local: {flush_ms: 10001}}}", "local.flush_ms", "10001", "at most 10000"),
        ("persist: {storage: {local: {flush_bytes: 1}}}", "local.flush_bytes", "1", "4096 or more"),
        (
            "persist: {storage: {local: {retention: {interval_ms: 99}}}}",
            "retention.interval_ms",
            "99",
            "100 or more",
        ),
        (
            "persist: {storage: {local: {retention: {job_bytes: 4095}}}}",
            "retention.job_bytes",
            "4095",
            "4096 or more",
        ),
        ("joblet: {jobs: {read_only_paths: /usr}}", "joblet.jobs.read_only_paths", "/usr", "a list"),
        (
            "persist: {storage: {cloudwatch: {metric_dimensions: {A: 1}}}}",
            "persist.storage.cloudwatch.metric_dimensions",
            "1",
            "a map of text to text",
        ),
        (
            "persist: {storage: {cloudwatch: {log_batch_size: 10001}}}",
            "persist.storage.cloudwatch.log_batch_size",
            "10001",
            "at most 10000",
        ),
        (
            "joblet: {limits: {max: {memory_bytes: 100MB}}}",
            "joblet.limits.max.memory_bytes",
            "'100MB'",
            "a whole number",
        ),
        ("joblet: {limits: {max: {cpu_cores: 3}}}", "joblet.limits.max.cpu_cores", "3", "text"),
        ("joblet: {limits: {max: {cpu_cores: 3-1}}}", "joblet.limits.max.cpu_cores", "3-1", "0-1,4"),
        ("joblet: {limits: {default: {pids: 0}}}", "joblet.limits.default.pids", "0", "1 or more"),
        ("joblet: {limits: {default: {open_files: 2}}}", "joblet.limits.default.open_files", "2", "3 to 1048576"),
        (
            "joblet: {limits: {roles: {user: {max: {cpu_weight: 10001}}}}}",
            "joblet.limits.roles.user.max.cpu_weight",
            "10001",
            "1 to 10000",
        ),
        (
            "joblet: {limits: {default: {pids: 5}, max: {pids: 4}}}",
            "joblet.limits.default.pids",
            "5",
            "joblet.limits.max.pids, 4",
        ),
        (
            'joblet: {limits: {roles: {admin: {default: {cpu_cores: "0"}, max: {cpu_cores: "1"}}}}}',
            "joblet.limits.roles.admin.default.cpu_cores",
            "0",
            "joblet.limits.roles.admin.max.cpu_cores, 1",
        ),
        ("joblet: {limits: {roles: {user: 7}}}", "joblet.limits.roles.user", "7", "a section"),
        ("joblet: {quotas: {calls_per_s: 0}}", "joblet.quotas.calls_per_s", "0", "1 or more"),
        ("joblet: {quotas: {calls_per_s: 0.5}}", "joblet.quotas.calls_per_s", "0.5", "a whole number"),
        ("joblet: {quotas: {upload_bytes: 1GB}}", "joblet.quotas.upload_bytes", "'1GB'", "a whole number"),
        ("joblet: {quotas: {roles: {user: {streams: -1}}}}", "joblet.quotas.roles.user.streams", "-1", "1 or more"),
        (
            "joblet: {quotas: {roles: {reader: {running_jobs: 1}}}}",
            "joblet.quotas.roles.reader.running_jobs",
            "1",
            "readers run no jobs",
        ),
        (
            "joblet: {quotas: {roles: {reader: {upload_bytes: 1}}}}",
            "joblet.quotas.roles.reader.upload_bytes",
            "1",
            "leave it out",
        ),
        ("joblet: {jobs: {network: host}}", "joblet.jobs.network", "host", "'none' or 'isolated' or 'bridge'"),
        ("joblet: {jobs: {rootfs: alpine}}", "joblet.jobs.rootfs", "alpine", "host, busybox, or an absolute path"),
        ("joblet: {networks: {bridge_subnet: 10.88.0.1/16}}", "joblet.networks.bridge_subnet", "10.88.0.1", "IPv4"),
        ("joblet: {networks: {isolated_subnet: 10.0.0.0/30}}", "joblet.networks.isolated_subnet", "/30", "8 to 29"),
        ("joblet: {networks: {isolated_subnet: 10.88.1.0/24}}", "isolated_subnet", "10.88.1.0", "overlaps"),
        ("joblet: {networks: {dns: [localhost]}}", "joblet.networks.dns", "localhost", "IPv4 addresses"),
        ("joblet: {networks: {blocked: [10.0.0.1/8]}}", "joblet.networks.blocked", "10.0.0.1/8", "169.254.0.0/16"),
        (
            "persist: {ipc: {socket: /elsewhere}}",
            "persist.ipc.socket",
            "/elsewhere",
            "/opt/joblet/run/persist-ipc.sock",
        ),
    ],
)
def test_a_wrong_value_is_told_with_key_value_and_what_is_expected(
    tmp_path: Path, text: str, key: str, value: str, expected: str
) -> None:
    """The three things that a person needs to repair it."""
    error = refusal(tmp_path, text)
    assert key in error.message
    assert value in error.message
    assert expected in error.detail


@pytest.mark.requirement("S0.21")
def test_cloudwatch_demands_a_node_id(tmp_path: Path) -> None:
    """Without one, two nodes could write to one log group."""
    assert "server.nodeId" in refusal(tmp_path, "persist: {storage: {type: cloudwatch}}").message


@pytest.mark.requirement("S0.26")
def test_the_deprecated_stream_prefix_is_accepted_and_noted(tmp_path: Path) -> None:
    """It loads, changes nothing and earns a warning."""
    settings = load(tmp_path, "persist: {storage: {cloudwatch: {log_stream_prefix: old}}}")
    assert [notice for notice in notices(settings) if "log_stream_prefix" in notice]
    assert notices(Settings()) == ()


def test_what_has_no_effect_is_noted(tmp_path: Path) -> None:
    """Two keys of the sources are for a server of connections; nobody is to believe that they change anything."""
    settings = load(tmp_path, "persist: {ipc: {max_connections: 20, max_message_size: 4096}}")
    assert ["has no effect" in notice for notice in notices(settings)] == [True, True]
    assert [notice.split()[0] for notice in notices(settings)] == [
        "persist.ipc.max_connections",
        "persist.ipc.max_message_size",
    ]


@pytest.mark.threat("D28")
@pytest.mark.parametrize(
    "text",
    [
        "version: !!python/object/apply:os.system ['true']",
        "a: &a x\nb: [" + "*a," * (ALIASES_MAX + 1) + "]",
        "[" * (DEPTH_MAX + 5) + "]" * (DEPTH_MAX + 5),
        "x" * (CONFIG_BYTES_MAX + 1),
        "server: {port: 1, port: 2}",
        "a: b: c",
        "server: {port: 99999999999999999999999999}",
        "- just\n- a list",
        "--- {}\n--- {}",
        "server: {nodeId: 2026-13-45}",
    ],
    ids=["object", "aliases", "depth", "size", "twice", "syntax", "huge", "list", "two documents", "no such date"],
)
def test_hostile_or_broken_yaml_is_an_error(tmp_path: Path, text: str) -> None:
    """No code runs, nothing grows, and the error names the file."""
    assert "joblet-config.yml" in refusal(tmp_path, text).message


def test_not_utf8_and_missing_files_are_told(tmp_path: Path) -> None:
    """Each with its path."""
    file = tmp_path / "latin.yml"
    file.write_bytes(b"version: \xff")
    with pytest.raises(JobletError, match="not UTF-8"):
        load_settings(file)
    with pytest.raises(JobletError, match="no configuration file") as caught:
        load_settings(tmp_path / "none.yml")
    assert caught.value.reason is Reason.NOT_FOUND


def test_the_command_line_wins_and_the_base_directorys_file_is_found(tmp_path: Path) -> None:
    """--base-dir and --port replace the file's; without --config the file of the base directory is read."""
    settings = load(tmp_path, "server: {port: 1}\njoblet: {base_dir: /a}", base_dir=tmp_path, port=0)
    assert (settings.server.port, settings.joblet.base_dir) == (0, str(tmp_path))
    assert load_settings(None, base_dir=tmp_path).server.port == 1
    assert load_settings(None, base_dir=tmp_path / "empty").server.port == Settings().server.port


def test_effective_fills_in_what_follows_and_hides_keys() -> None:
    """`config show` shows paths and the node id that hold, and never a private key."""
    settings = settings_of('security: {serverKey: "-----BEGIN PRIVATE KEY-----\\nabc"}', source="test")
    shown = effective(settings)
    assert shown["security"]["serverKey"] == HIDDEN
    assert shown["security"]["caCert"] == "/opt/joblet/certs/ca.crt"
    assert shown["persist"]["storage"]["local"]["logs"]["directory"] == "/opt/joblet/logs"
    assert shown["joblet"]["volumes"]["directory"] == "/var/lib/joblet/volumes"
    assert "owner_bytes_max" not in shown["joblet"]["volumes"], "nobody set it"
    assert shown["server"]["nodeId"] == node_id(settings)
    assert "abc" not in str(shown)


@pytest.mark.requirement("S2.31")
def test_limits_load_and_show_only_what_is_set() -> None:
    """Sections may be empty; what is shown can be loaded again and means the same."""
    text = """
joblet:
  limits:
    default: {cpu_percent: 50, memory_bytes: 104857600, io_weight: 500, cpu_cores: "0-1"}
    max:
    roles:
      user: {max: {memory_bytes: 209715200, pids: }}
      writer:
"""
    loaded = settings_of(text, source="test")
    limits = loaded.joblet.limits
    assert (limits.default.cpu_percent, limits.max.cpu_percent) == (50, None)
    assert (limits.roles.user.max.memory_bytes, limits.roles.user.max.pids) == (200 * 2**20, None)
    shown = effective(loaded)["joblet"]["limits"]
    assert shown == {
        "default": {"cpu_percent": 50, "memory_bytes": 104857600, "io_weight": 500, "cpu_cores": "0-1"},
        "roles": {"user": {"max": {"memory_bytes": 209715200}}},
    }
    assert settings_of(json.dumps({"joblet": {"limits": shown}}), source="shown").joblet.limits == limits
    assert effective(Settings())["joblet"]["limits"] == {}


def test_what_is_shown_can_be_loaded(tmp_path: Path) -> None:
    """`joblet config show` prints a file that means the same."""
    settings = load(tmp_path, "joblet: {base_dir: /srv/node, volumes: {owner_bytes_max: 5}, quotas: {streams: 3}}")
    again = load(tmp_path, json.dumps(effective(settings)))
    assert effective(again) == effective(settings)
    assert layout_of(again) == layout_of(settings)
    assert again.joblet.volumes.owner_bytes_max == 5


def test_examples_of_the_documentation_load(tmp_path: Path) -> None:
    """Whatever a chapter shows as a file of the node is one; a client's has `nodes`."""
    chapters = (Path(__file__).parents[2] / "docs").glob("*.md")
    examples = [
        example
        for chapter in chapters
        for example in re.findall(r"^```yaml\n(.*?)^```", chapter.read_text(), re.MULTILINE | re.DOTALL)
        if "\nnodes:" not in example
    ]
    assert len(examples) >= 9
    for example in examples:
        load(tmp_path, example)


def test_every_default_is_documented_as_it_is() -> None:
    """The second column of docs/configuration.md is what holds when nothing is said."""
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    documented = dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \| .+ \|$", text, re.MULTILINE))
    wrong = {}
    for key, default in defaults(msgspec.to_builtins(Settings()), ""):
        told = documented.get(key, "").strip("`")
        value = None if told == "not set" else yaml.safe_load(re.sub(r"(?<=\d),(?=\d{3})", "", told))
        if (list(default) if isinstance(default, tuple) else default) != value:
            wrong[key] = (default, told)
    assert wrong == {}


def defaults(section: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key with its default, but for limits and quotas of roles, which have none."""
    for key, value in section.items():
        name = prefix + key
        if name in {"joblet.limits", "joblet.quotas.roles"}:
            continue
        if isinstance(value, dict) and value and not name.endswith(".marks"):
            yield from defaults(value, f"{name}.")
        else:
            yield name, value


def test_every_setting_is_documented() -> None:
    """docs/configuration.md names every key of the file; what everybody has, a role has under the same name."""
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    of_everybody = re.compile(r"^joblet\.limits\.(roles\.\w+\.)?(default|max)\.")
    of_role = re.compile(r"^joblet\.quotas\.roles\.\w+")
    keys = {of_role.sub("joblet.quotas", of_everybody.sub("joblet.limits.max.", key)) for key in dotted_keys()}
    assert sorted(key for key in keys if f"`{key}`" not in text) == []
