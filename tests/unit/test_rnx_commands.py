"""The command line as a whole: help, global options, completion. No node is needed for any of it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli.front.values import SIGNAL
from cli.rnx import main as rnx
from cli.rnx.commands import Room, Verb
from cli.rnx.invocation import Invocation
from cli.rnx.values import VOLUME, VolumeArgument

REPOSITORY = Path(__file__).parents[2]


def every_command(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands below, with the words that lead there."""
    yield path, command
    if isinstance(command, Room):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from every_command(child, (*path, name))


COMMANDS = dict(every_command(rnx.program))


def test_the_commands_of_the_contract_exist() -> None:
    """Everything that cli.md names is there."""
    verbs = "run start list status log metrics wait stop cancel delete delete-all"
    volumes = "create list inspect remove attach detach resize snapshot clone export import"
    words = {
        *((),),
        *((word,) for word in ("job", "run", "volume", "node", "nodes", "monitor", "completion")),
        *(("job", verb) for verb in verbs.split()),
        *(("volume", verb) for verb in volumes.split()),
        *(("volume", "snapshot", verb) for verb in ("create", "list", "remove", "restore")),
        ("node", "info"),
        ("node", "audit"),
    }
    assert set(COMMANDS) == words


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """--help exits with 0, explains the command and shows an example that begins with rnx or uses it."""
    assert rnx.run([*path, "--help"]) == 0
    help_text = capsys.readouterr().out
    command = COMMANDS[path]
    assert isinstance(command, Room | Verb)
    assert command.help
    example = help_text.partition("Example:\n")[2]
    assert "rnx " in example


@pytest.mark.filterwarnings("ignore:'protected_args'")  # click 9 will have what it holds in args
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_examples_are_valid_command_lines(path: tuple[str, ...]) -> None:
    """What the help shows can be typed: no unknown option, no missing argument."""
    command = COMMANDS[path]
    assert isinstance(command, Room | Verb)
    for line in command.example.splitlines():
        words = _words(line)
        context: click.Context = click.Context(rnx.program, info_name="rnx")
        current: click.Command = rnx.program
        while isinstance(current, Room):
            context = current.make_context("rnx", words, parent=context)
            name, child, words = current.resolve_command(context, [*context.protected_args, *context.args])
            assert name is not None
            assert child is not None
            current = child
        current.make_context("rnx", words, parent=context)


def _words(line: str) -> list[str]:
    """The words behind `rnx` in an example, without what the shell would take."""
    import shlex

    inner = line.partition("$(")[2].rpartition(")")[0] or line
    words = shlex.split(inner, comments=True)
    for stop in ("|", "&&", ">"):
        if stop in words:
            words = words[: words.index(stop)]
    assert words[0] == "rnx"
    return words[1:]


def test_global_options_stand_anywhere_and_the_last_wins() -> None:
    """Before the verb, behind the group, behind the verb."""
    seen: list[Invocation] = []

    @click.command("probe", cls=Verb, example="rnx probe")
    @click.pass_obj
    def probe(invocation: Invocation) -> None:
        """Look."""
        seen.append(invocation)

    group = Room(name="group", help="x", example="x", rooms={})
    group.get_command = lambda ctx, cmd_name: probe  # type: ignore[method-assign]  # noqa: ARG005  # a table of one
    for words in (
        ["--json", "--node", "a", "--timeout", "5s", "probe", "--node", "b", "--config", "/c"],
        ["--node", "b", "--config", "/c", "probe", "--timeout", "5s", "--json"],
    ):
        group.main(words, prog_name="rnx", standalone_mode=False)
        found = seen.pop()
        assert (found.node, found.json, found.timeout_ms, found.config) == ("b", True, 5000, Path("/c"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets a script that calls rnx back."""
    assert rnx.run(["completion", shell]) == 0
    assert f"_RNX_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_completion_answers() -> None:
    """What a shell asks for is answered: commands, and the options of one."""
    for words, expected in (
        ("rnx job st", {"start", "status", "stop"}),
        ("rnx job log --t", {"--tail", "--timestamps"}),
        ("rnx job run --open", {"--open-files"}),
        ("rnx job start --file", {"--file-size"}),
    ):
        environment = os.environ | {"_RNX_COMPLETE": "bash_complete", "COMP_WORDS": words}
        environment["COMP_CWORD"] = str(len(words.split()) - 1)
        answer = subprocess.run(
            [sys.executable, "-m", "cli.rnx"], cwd=REPOSITORY, env=environment, capture_output=True, check=True
        )
        assert expected <= {line.partition(",")[2] for line in answer.stdout.decode().splitlines()}


def test_parsing_and_help_do_not_load_grpc() -> None:
    """--version and completion of command names answer fast: the heavy imports wait until there is a call to make."""
    code = "import sys; from cli.rnx.main import run; run(['--version']); sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("text", "name"), [("9", "SIGKILL"), ("term", "SIGTERM"), ("SIGINT", "SIGINT"), ("SigHup", "SIGHUP")]
)
def test_signals(text: str, name: str) -> None:
    """Names with and without SIG, in any case, and numbers."""
    assert SIGNAL(text) == name


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("data", VolumeArgument("data", "", read_only=False)),
        ("data:/d", VolumeArgument("data", "/d", read_only=False)),
        ("data:/d:ro", VolumeArgument("data", "/d", read_only=True)),
        ("data:ro", VolumeArgument("data", "", read_only=True)),
        ("data:/d:rw", VolumeArgument("data", "/d", read_only=False)),
    ],
)
def test_volumes(text: str, volume: VolumeArgument) -> None:
    """NAME[:/PATH][:ro]."""
    assert VOLUME(text) == volume


@pytest.mark.parametrize("text", ["", ":ro", "data:relative", "data:/a:/b", "data:/d:wo"])
def test_malformed_volumes(text: str) -> None:
    """Anything else is a usage error."""
    with pytest.raises(click.BadParameter):
        VOLUME(text)


def test_a_defect_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw: no traceback, unless it is asked for, and exit code 1."""
    monkeypatch.delenv("RNX_TRACEBACK", raising=False)
    unforeseen = Verb("boom", example="rnx boom", callback=lambda: next(iter(())))
    monkeypatch.setitem(rnx.program.__dict__["_rooms"], "boom", f"{__name__}:BOOM")
    monkeypatch.setitem(globals(), "BOOM", unforeseen)
    with pytest.raises(SystemExit) as ended:
        rnx.main(["boom"])
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("rnx: defect: StopIteration")
    assert err.count("\n") == 1
