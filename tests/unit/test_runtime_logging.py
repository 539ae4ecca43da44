"""The services' own log: format, level, output, and no forged lines."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from common.config.settings import Logging
from common.errors import JobletError
from common.logsetup import TRACEBACK_INDENT, configure_logging, escaped

HOSTILE = "a\n2026-01-01T00:00:00Z INFO    api forged\x1b[2J\x9b\u2028\r"


class Output:
    """What the process wrote to stdout so far."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self._text = ""

    def getvalue(self) -> str:
        """All of it."""
        self._text += self._capture.readouterr().out
        return self._text


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Iterator[Output]:
    """The output of the test; the root logger is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield Output(capsys)
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.requirement("S0.36")
def test_text_lines_name_time_level_service_event_and_fields(output: Output) -> None:
    """One line an event, for our loggers and for those of libraries."""
    configure_logging(Logging(), "persist")
    structlog.get_logger("x").info("stored", job="j", lines=3, why="two words")
    logging.getLogger("some.library").warning("odd %s", "thing")
    first, second = output.getvalue().splitlines()
    assert first.split(" ", 1)[1] == 'INFO    persist stored job=j lines=3 why="two words"'
    assert second.split(" ", 1)[1] == "WARNING persist odd thing logger=some.library"


@pytest.mark.threat("C21")
@pytest.mark.parametrize("form", ["text", "json"])
def test_no_value_can_forge_a_line_or_drive_a_terminal(output: Output, form: str) -> None:
    """Whatever stands in event, key, value or an exception's text, the line stays one line of printable text."""
    configure_logging(Logging(format=form), "api")  # type: ignore[arg-type]  # parametrized literal
    log = structlog.get_logger("x")
    log.info(HOSTILE, value=HOSTILE, nested={"k": HOSTILE}, **{HOSTILE: 1})
    logging.getLogger("library").error(HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("failed")
    text = output.getvalue()
    lines = text.split("\n")[:-1]
    assert all(line.isprintable() for line in lines), text
    assert text.isascii() or form == "text"
    own = [line for line in lines if not line.startswith(TRACEBACK_INDENT)]
    assert len(own) == 3
    if form == "json":
        assert json.loads(own[0])["value"] == HOSTILE
    else:
        assert not [line for line in lines if line.startswith("2026-01-01")]


@pytest.mark.requirement("S0.62")
def test_the_level_decides_what_is_written(output: Output) -> None:
    """DEBUG gives debug lines, INFO does not."""
    configure_logging(Logging(level="INFO"), "api")
    structlog.get_logger("x").debug("hidden")
    configure_logging(Logging(level="DEBUG"), "api")
    structlog.get_logger("x").debug("shown")
    assert "hidden" not in output.getvalue()
    assert "shown" in output.getvalue()


def test_output_may_be_a_file_and_must_be_one_that_opens(output: Output, tmp_path: Path) -> None:
    """A path is appended to; one that cannot be opened, or is relative, is an error of the configuration."""
    file = tmp_path / "api.log"
    configure_logging(Logging(output=str(file)), "api")
    structlog.get_logger("x").info("to the file")
    assert "to the file" in file.read_text()
    assert output.getvalue() == ""
    for bad in (str(tmp_path / "none" / "x.log"), "relative.log"):
        with pytest.raises(JobletError, match=r"logging\.output"):
            configure_logging(Logging(output=bad), "api")


def test_escaped_keeps_what_is_printable() -> None:
    """Letters of all languages stay; line ends, escapes and separators are shown."""
    assert escaped("größe ✓") == "größe ✓"
    assert escaped("a\nb\x1b\x9b\u2028\U000e0001") == r"a\nb\x1b\x9b\u2028\U000e0001"
