"""How the services log: structlog and the standard library through one formatter, `text` or `json`.

Every line names its service. A control character inside a value is written as an escape, so that nobody who can
choose a value (a client, a job, a certificate) can forge a line or drive an operator's terminal; lines that belong
to a traceback begin with `    | `. Not here: what jobs print.
"""

import json
import logging
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from common.config.settings import Logging
from common.errors import invalid

TRACEBACK_INDENT: Final = "    | "
_LEADING: Final = ("timestamp", "level", "service", "event", "exception", "logger")
_QUOTE_WHEN: Final = frozenset(" \"'=\\")


def configure_logging(settings: Logging, service: str) -> None:
    """Send every log record of this process to `settings.output`. Raises JobletError when that cannot be opened."""
    handler = _handler(settings.output)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _service_adder(str(service)),
    ]
    render: Processor = _json_line if settings.format == "json" else _text_line
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(), structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                render,
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(_level(settings.level))
    # What a library logs below WARNING interests only who debugs.
    for noisy in ("asyncio", "botocore", "boto3", "urllib3", "grpc"):
        logging.getLogger(noisy).setLevel(logging.NOTSET if settings.level == "DEBUG" else logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Loggers are made at import, before this runs: they must look the configuration up when used.
        cache_logger_on_first_use=False,
    )


def escaped(text: str) -> str:
    r"""`text` with every character that could end a line or move a cursor written as an escape such as \x1b."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    # Not the unicode_escape codec: it would be imported at its first use, which may be after privileges are dropped.
    code = ord(character)
    return {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(character) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


def _handler(output: str) -> logging.Handler:
    match output:
        case "stdout":
            return logging.StreamHandler(sys.stdout)
        case "stderr":
            return logging.StreamHandler(sys.stderr)
    path = Path(output)
    if not path.is_absolute():
        raise invalid(f"logging.output is {output[:200]!r}", "expected: stdout, stderr or an absolute path")
    try:
        return logging.FileHandler(path, encoding="utf-8")
    except OSError as cause:
        raise invalid(
            f"logging.output: cannot open {path}: {cause.strerror}", f"make the directory {path.parent}"
        ) from cause


def _level(name: str) -> int:
    return logging.getLevelNamesMapping()[name]


def _service_adder(service: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return add


def _json_line(_logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]) -> str:
    """One JSON object; JSON itself escapes control characters, and ASCII output the rest."""
    return json.dumps(_ordered(event), default=repr)


def _text_line(_logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]) -> str:
    """`time LEVEL service event key=value …`, and below it the lines of a traceback, indented."""
    fields = _ordered(event)
    head = f"{fields.pop('timestamp')} {str(fields.pop('level', 'info')).upper():7} {fields.pop('service')}"
    words = [head, escaped(str(fields.pop("event", "")))]
    traceback = str(fields.pop("exception", ""))
    words += [f"{escaped(str(key))}={_value(value)}" for key, value in fields.items()]
    lines = [" ".join(words)]
    lines += [TRACEBACK_INDENT + escaped(line) for line in traceback.split("\n") if traceback]
    return "\n".join(lines)


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    if not text or not _QUOTE_WHEN.isdisjoint(text) or not text.isprintable():
        return '"' + escaped(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'
    return text


def _ordered(event: Mapping[str, Any]) -> dict[str, Any]:
    first = {key: event[key] for key in _LEADING if key in event}
    return first | {key: value for key, value in event.items() if key not in first}
