"""`joblet verify [JOB]`: are the stored logs whole? Reads the files themselves; no service needs to run."""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from cli.client.escape import escape_line
from cli.client.gaps import gap_text
from cli.joblet.storedlog import Report, verify_job
from cli.joblet.up import base_dir_option
from common.config.layout import layout_of
from common.config.load import load_settings
from common.errors import JobletError, not_found, precondition
from common.identifiers import parse_job_id, parse_job_reference


@click.command(epilog="Example: joblet verify --base-dir /tmp/node 6fa459ea")
@click.argument("job", required=False)
@base_dir_option
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Configuration file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a job.")
@click.option("--strict", is_flag=True, help="Exit with 1 for gaps, too.")
def verify(job: str | None, base_dir: Path | None, config: Path | None, *, as_json: bool, strict: bool) -> int:
    """Check stored files: gzip members whole, JSON valid, no sequence missing or twice. Exit code 1 with findings.

    A gap is told below the verdict and is no finding: the log says itself which entries are missing and why. Behind
    damaged bytes the check goes on at the next member.

    While a job still writes, its two files are flushed one after the other, and a sequence that is on the way may be
    reported as missing.
    """
    logs = layout_of(load_settings(config, base_dir=base_dir)).logs
    found = 0
    for directory in _job_directories(logs, parse_job_reference(job) if job else ""):
        report = verify_job(directory)
        found += len(report.findings) + (len(report.gaps) if strict else 0)
        # Not msgspec's own JSON: it leaves C1 and bidirectional controls as they are.
        click.echo(json.dumps(msgspec.to_builtins(report)) if as_json else _text(report))
    return 1 if found else 0


def _job_directories(logs: Path, prefix: str) -> Iterator[Path]:
    try:
        names = sorted(entry.name for entry in logs.iterdir() if entry.is_dir() and not entry.is_symlink())
    except FileNotFoundError as cause:
        raise not_found(f"no stored logs at {logs}", "give --base-dir or --config") from cause
    except PermissionError as cause:
        raise precondition(f"{logs} is closed to you", "run it as root") from cause
    matching = [name for name in names if name.startswith(prefix) and _is_job(name)]
    if prefix and not matching:
        raise not_found(f"nothing is stored of a job {prefix}", f"see {logs}")
    yield from (logs / name for name in matching)


def _is_job(name: str) -> bool:
    try:
        parse_job_id(name)
    except JobletError:
        return False
    return True


def _text(report: Report) -> str:
    verdict = "whole" if not report.findings else f"{len(report.findings)} findings"
    gaps = f", {report.gap_entries} entries in gaps" if report.gap_entries else ""
    head = f"{report.job}: {report.lines} lines, last sequence {report.last_sequence}{gaps}: {verdict}"
    return "\n".join([head, *(f"  {escape_line(text)}" for text in (*report.findings, *_gaps(report)))])


def _gaps(report: Report) -> Iterator[str]:
    for gap in report.gaps:
        yield f"gap: {gap_text(gap.first, gap.count, gap.reason, size_bytes=gap.bytes, stream=gap.stream)}"
    if report.gaps_untold:
        yield f"and {report.gaps_untold} more gaps"
