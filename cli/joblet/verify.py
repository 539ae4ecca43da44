"""`joblet verify [JOB]`: are the stored logs whole, or the audit log? Reads the files; no service needs to run."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import msgspec

from cli.client.escape import escape, escape_line
from cli.client.gaps import gap_text
from cli.joblet.auditverify import Head, verify_audit
from cli.joblet.auditverify import Report as AuditReport
from cli.joblet.storedlog import Report, verify_job
from cli.joblet.up import base_dir_option
from common.config.layout import Layout, layout_of
from common.config.load import load_settings
from common.errors import JobletError, not_found, precondition
from common.identifiers import parse_job_id, parse_job_reference

SOURCES: Final = ("api", "persist")
_DIGEST: Final = re.compile("[0-9a-f]{64}", re.ASCII)


@click.command(epilog="Example: joblet verify --base-dir /tmp/node 6fa459ea")
@click.argument("job", required=False)
@base_dir_option
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Configuration file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a job.")
@click.option("--strict", is_flag=True, help="Exit with 1 for gaps, too.")
@click.option("--audit", is_flag=True, help="Check the chain of the audit log instead.")
@click.option("--source", type=click.Choice(SOURCES), help="With --audit: of this service only.  [default: both]")
@click.option(
    "--head",
    metavar="HASH",
    default="",
    help="With --audit: a line with this hash must be there.  [of api, or --source]",
)
@click.option("--head-number", type=click.IntRange(1), help="With --audit: so must this number.")
def verify(
    job: str | None,
    base_dir: Path | None,
    config: Path | None,
    *,
    as_json: bool,
    strict: bool,
    audit: bool,
    source: str | None,
    head: str,
    head_number: int | None,
) -> int:
    """Check stored files: gzip members whole, JSON valid, no sequence missing or twice. Exit code 1 with findings.

    A gap is told below the verdict and is no finding: the log says itself which entries are missing and why. Behind
    damaged bytes the check goes on at the next member.

    While a job still writes, its two files are flushed one after the other, and a sequence that is on the way may be
    reported as missing.

    With --audit: no line of the audit log changed, missing, moved, inserted or torn. Keep the head that is printed
    where the node cannot reach it: with it (--head, --head-number) a later check also finds a log that was cut off at
    its end. What the log tells itself, lines that were torn or could not be written, is no finding.
    """
    if not audit and (source or head or head_number):
        raise click.UsageError("--source, --head and --head-number are for --audit")
    layout = layout_of(load_settings(config, base_dir=base_dir))
    if audit:
        if job:
            raise click.UsageError("--audit takes no job")
        return _verify_audit(layout, source, _head(head, head_number or 0), as_json=as_json, strict=strict)
    logs = layout.logs
    found = 0
    for directory in _job_directories(logs, parse_job_reference(job) if job else ""):
        report = verify_job(directory)
        found += len(report.findings) + (len(report.gaps) if strict else 0)
        # Not msgspec's own JSON: it leaves C1 and bidirectional controls as they are.
        click.echo(json.dumps(msgspec.to_builtins(report)) if as_json else _text(report))
    return 1 if found else 0


def _head(digest: str, number: int) -> Head | None:
    if digest and not _DIGEST.fullmatch(digest):
        raise click.UsageError("--head is no hash: give the 64 hexadecimal digits of `head` as they were printed")
    return Head(number, digest) if digest or number else None


def _verify_audit(layout: Layout, source: str | None, head: Head | None, *, as_json: bool, strict: bool) -> int:
    found = 0
    for name, directory in (("api", layout.audit), ("persist", layout.audit_persist)):
        if source in (None, name):
            try:
                report = verify_audit(directory, name, head if name == (source or SOURCES[0]) else None)
            except FileNotFoundError as cause:
                raise not_found(f"no audit log at {directory}", "give --base-dir or --config") from cause
            except PermissionError as cause:
                raise precondition(f"{directory} is closed to you", "run it as root") from cause
            except OSError as cause:
                raise precondition(
                    f"{directory} cannot be read: {cause.strerror}", "look at the files there"
                ) from cause
            found += len(report.findings) + (len(report.notes) if strict else 0)
            click.echo(json.dumps(msgspec.to_builtins(report)) if as_json else _audit_text(report))
    return 1 if found else 0


def _audit_text(report: AuditReport) -> str:
    verdict = "whole" if not report.findings else f"{len(report.findings) + report.findings_untold} findings"
    lines = [f"{report.source}: {_counted(report.lines, 'line')} in {_counted(len(report.files), 'file')}: {verdict}"]
    if report.lines:
        lines.append(f"  first number {report.first_number} of {report.first_time}")
        lines.append(f"  last number {report.last_number} of {report.last_time}")
        lines.append(f"  head {report.head}")
    lines += [f"  {text}" for text in (*report.findings, *report.notes)]
    if report.findings_untold:
        lines.append(f"  and {report.findings_untold} more findings")
    return "\n".join(escape(line) for line in lines)


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


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
