"""What operators install: Procfile, supervisord.conf, systemd units and the example configuration agree with us."""

import configparser
import re
import tomllib
from pathlib import Path
from typing import Final

import pytest
from honcho.environ import parse_procfile

from cli.joblet.supervisor import START_ORDER
from common.config.load import load_settings
from common.config.settings import Settings
from common.runtime import OOM_SCORE

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
SERVICES: Final = tuple(str(service) for service in START_ORDER)


def scripts() -> set[str]:
    """Console scripts that the package installs."""
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """A systemd unit: section → key → values; a key may come more than once (systemd.syntax(7))."""
    sections: dict[str, dict[str, list[str]]] = {}
    current = ""
    for line in path.read_text().splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            current = match[1]
            sections[current] = {}
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, f"{path.name}: {line}"
            sections[current].setdefault(key, []).append(value)
    return sections


def test_the_procfile_names_every_service_once_in_the_order_of_start() -> None:
    """Each line runs a program that exists, with the shared configuration."""
    processes = parse_procfile((ROOT / "Procfile").read_text()).processes
    assert tuple(processes) == SERVICES
    for name, command in processes.items():
        program, option, config = command.split()
        assert Path(program).name == f"joblet-{name}"
        assert Path(program).name in scripts()
        assert (option, config) == ("--config", "/opt/joblet/joblet-config.yml")


def test_supervisord_runs_every_service_in_order_and_leaves_jobs_alone() -> None:
    """It starts by priority, restarts what dies, and signals the executor without its children."""
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read(DEPLOY / "supervisord.conf")
    programs = [name.removeprefix("program:") for name in parser.sections() if name.startswith("program:")]
    assert sorted(programs, key=lambda name: parser.getint(f"program:{name}", "priority")) == [
        f"joblet-{name}" for name in SERVICES
    ]
    assert parser["group:joblet"]["programs"].split(",") == [f"joblet-{name}" for name in SERVICES]
    for name in programs:
        section = parser[f"program:{name}"]
        assert Path(section["command"].split()[0]).name == name
        assert name in scripts()
        assert section.getboolean("autorestart")
        assert section["stopsignal"] == "TERM"
        assert not section.getboolean("stopasgroup", fallback=False)
        assert not section.getboolean("killasgroup", fallback=False)


@pytest.mark.parametrize("service", SERVICES)
def test_each_systemd_unit_waits_for_ready_and_restarts(service: str) -> None:
    """Type=notify is what the services speak; the out-of-memory score is the one they set themselves."""
    sections = unit(DEPLOY / "systemd" / f"joblet-{service}.service")
    settings = sections["Service"]
    assert settings["Type"] == ["notify"]
    assert settings["Restart"] == ["always"]
    program = settings["ExecStart"][0].split()[0]
    assert Path(program).name == f"joblet-{service}"
    assert Path(program).name in scripts()
    scores = {str(each): str(score) for each, score in OOM_SCORE.items()}
    assert settings["OOMScoreAdjust"] == [scores[service]]
    assert sections["Install"]["WantedBy"] == ["joblet.target"]


def test_systemd_lets_jobs_outlive_the_executor() -> None:
    """Only the executor itself is signalled, and the groups below its own are its business."""
    settings = unit(DEPLOY / "systemd" / "joblet-executor.service")["Service"]
    assert settings["KillMode"] == ["process"]
    assert settings["Delegate"] == ["yes"]
    assert not [key for key in settings if key.startswith(("Protect", "Private", "RestrictNamespaces"))]


def test_the_target_wants_every_unit_and_every_name_exists() -> None:
    """After=, Wants= and WantedBy= of ours name files that are there."""
    units = {path.name: unit(path) for path in (DEPLOY / "systemd").iterdir()}
    wanted = set(units["joblet.target"]["Unit"]["Wants"][0].split())
    assert wanted == {f"joblet-{name}.service" for name in SERVICES}
    for name, sections in units.items():
        for key in ("After", "Wants", "PartOf", "Requires"):
            for value in sections["Unit"].get(key, []):
                ours = [each for each in value.split() if each.startswith("joblet")]
                assert set(ours) <= set(units), f"{name}: {key}={value}"


@pytest.mark.requirement("S0.61")
def test_one_unit_runs_the_whole_node() -> None:
    """`journalctl -u joblet` has the lines of all services, persist's among them."""
    sections = unit(DEPLOY / "systemd" / "joblet.service")
    settings = sections["Service"]
    program, verb, *_ = settings["ExecStart"][0].split()
    assert (Path(program).name, verb) == ("joblet", "up")
    assert (settings["Type"], settings["KillMode"], settings["Delegate"]) == (["notify"], ["process"], ["yes"])
    assert sections["Unit"]["Conflicts"] == ["joblet.target"]


def test_the_example_configuration_is_valid_and_states_the_defaults() -> None:
    """Copying it unchanged changes nothing."""
    assert load_settings(DEPLOY / "joblet-config.example.yml") == Settings()


def test_the_makefile_offers_what_the_command_line_contract_promises() -> None:
    """A newcomer's two commands, and the others of the contract that this release has."""
    text = (ROOT / "Makefile").read_text()
    for target in ("setup", "demo", "test", "lint", "proto", "requirements", "bench"):
        assert re.search(rf"^{target}:", text, re.MULTILINE), target
