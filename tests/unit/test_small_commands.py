"""jobc and worker-service as command lines: help, options, completion, words. No node is needed for any of it."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.front.commands import Room, Verb
from cli.front.program import Program
from cli.jobc.main import ENTRY as JOBC
from cli.worker_service.main import ENTRY as WORKER
from cli.worker_service.words import UnknownOption, arguments, arranged
from common.errors import JobletError

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = {"jobc": JOBC, "worker_service": WORKER}
COMMANDS = [
    *((JOBC, verb) for verb in ("", "start", "stop", "status", "logs", "completion")),
    *((WORKER, verb) for verb in ("", "start", "stop", "query", "stream", "completion")),
]
VALUED, BARE = {"-memory", "--memory", "-command"}, {"-raw", "-help"}


def command_of(program: Program, verb: str) -> Room | Verb:
    """The root of a program, or one of its commands."""
    root = program.root
    assert isinstance(root, Room)
    if not verb:
        return root
    command = root.get_command(click.Context(root), verb)
    assert isinstance(command, Verb)
    return command


@pytest.mark.requirement("S3.4", "X7")
def test_the_commands_are_those_of_the_contract() -> None:
    """cli.md's verbs and completion, no others."""
    for program in (JOBC, WORKER):
        assert isinstance(program.root, Room)
        verbs = program.root.list_commands(click.Context(program.root))
        assert verbs == [verb for one, verb in COMMANDS if one is program and verb]


@pytest.mark.parametrize(("program", "verb"), COMMANDS)
def test_every_command_has_help_with_an_example(
    program: Program, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """--help exits with 0 and shows an example that can be typed."""
    words = [verb] if verb else []
    assert program.run([*words, "--help"]) == 0
    text = capsys.readouterr().out
    example = text.partition("Example:\n")[2]
    assert f"{program.name} " in example
    for line in command_of(program, verb).example.splitlines():
        inner = line.partition("$(")[2].rpartition(")")[0] or line
        typed = shlex.split(inner, comments=True)
        typed = typed[: min([typed.index(stop) for stop in ("|", ">") if stop in typed], default=len(typed))]
        name, *rest = typed
        assert name == program.name
        context = program.root.make_context(name, list(rest))
        assert isinstance(program.root, Room)
        _, command, left = program.root.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        command.make_context(rest[0], left, parent=context)


@pytest.mark.parametrize(("program", "flag"), [(JOBC, "--version"), (WORKER, "-version"), (WORKER, "--version")])
def test_version(program: Program, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Name and version."""
    assert program.run([flag]) == 0
    assert capsys.readouterr().out.startswith(f"{program.name} 0.")


@pytest.mark.parametrize("module", PROGRAMS)
def test_parsing_does_not_load_grpc(module: str) -> None:
    """--version answers fast: the heavy imports wait until there is a call to make."""
    code = f"import sys; from cli.{module}.main import run; run(['--version']); sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_completion_scripts(program: Program, shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets a script that calls the program back."""
    assert program.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_{program.name.upper().replace('-', '_')}_COMPLETE={shell}_complete" in script
    assert program.name in script


@pytest.mark.parametrize(
    ("module", "words", "expected"),
    [
        ("jobc", "jobc st", {"start", "stop", "status"}),
        ("jobc", "jobc stop --s", {"--signal"}),
        ("worker_service", "worker-service st", {"start", "stop", "stream"}),
        ("worker_service", "worker-service start -c", {"-command", "-cpu-percent", "-config"}),
        ("worker_service", "worker-service start -command ls -me", {"-memory"}),
    ],
)
def test_completion_answers(module: str, words: str, expected: set[str]) -> None:
    """What a shell asks for is answered: commands, and the options of one."""
    name = words.split(maxsplit=1)[0].upper().replace("-", "_")
    environment = os.environ | {f"_{name}_COMPLETE": "bash_complete", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split()) - 1)
    answer = subprocess.run(
        [sys.executable, "-m", f"cli.{module}"], cwd=REPOSITORY, env=environment, capture_output=True, check=True
    )
    assert {line.partition(",")[2] for line in answer.stdout.decode().splitlines()} == expected


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_no_words_at_all_is_a_usage_error(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    """2, with the help on stderr."""
    assert program.run([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Example:" in err


@pytest.mark.requirement("S2.17")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-memory", "5", "a b"], ["-memory", "5", "--", "a b"]),
        (["-l /tmp", "-command", "ls"], ["-command", "ls", "--", "-l /tmp"]),
        (["-la", "-raw", "--memory=5"], ["-raw", "--memory=5", "--", "-la"]),
        (["-command", "-la"], ["-command", "-la", "--"]),
        (["-command", "x", "--", "-memory", "--"], ["-command", "x", "--", "-memory", "--"]),
        (["-memroy 5"], ["--", "-memroy 5"]),
        (["-"], ["--", "-"]),
        ([], ["--"]),
    ],
)
def test_options_first_then_the_rest(words: list[str], expected: list[str]) -> None:
    """What is no option is left as it is, and a value is never taken for an option."""
    assert arranged(words, valued=VALUED, bare=BARE) == expected


@pytest.mark.parametrize("words", [["-command"], ["a b", "-command", "x", "--memory"]])
def test_an_option_without_its_value_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--`, which stands behind the options, is nobody's value: it would be the job's command."""
    assert WORKER.run(["start", *words]) == 2
    assert capsys.readouterr().err == (
        f"worker-service: Option '{words[-1]}' requires an argument: see `worker-service start --help`\n"
    )


@pytest.mark.parametrize("word", ["-memroy=5", "--memry", "-comand", "-rw"])
def test_a_misspelled_option_is_no_argument(word: str) -> None:
    """It would be a limit that silently does not hold."""
    with pytest.raises(UnknownOption) as unknown:
        arranged([word], valued=VALUED, bare=BARE)
    assert unknown.value.word == word
    assert unknown.value.nearest in VALUED | BARE


@pytest.mark.requirement("S2.17")
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_what_is_quoted_arrives_as_it_was(words: list[str]) -> None:
    """Whatever stands in quotes is one argument, unchanged: nothing of a shell happens to it."""
    assert arguments(shlex.join(words)) == tuple(words)


@pytest.mark.parametrize("text", ["'", '"a', "a\\", "a 'b c"])
def test_an_open_quote_is_refused(text: str) -> None:
    """As INVALID, which is a usage error."""
    with pytest.raises(JobletError, match="open quote"):
        arguments(text)
