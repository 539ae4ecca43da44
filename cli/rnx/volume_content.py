"""`rnx volume export|import`: the content of a volume to and from a tar archive.

Here: the commands, and reading. Not here: the file that is whole or not there (`wholefile.py`), tar itself (the node).
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cli.client.views import volume_object
from cli.client.volume_content import CHUNK_BYTES, export_volume, import_volume
from cli.front.output import STDOUT, print_line, write_all
from cli.rnx.commands import Verb
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.names import volume_names
from cli.rnx.progress import transfer_progress
from cli.rnx.tables import print_json
from cli.rnx.values import CONTENT, ContentArgument
from cli.rnx.volumes import name_argument
from cli.rnx.wholefile import whole_file
from common.errors import invalid
from common.quantities import format_size

STDIN = 0
STREAM = "-"


@click.command(
    "export",
    cls=Verb,
    example="rnx volume export data data.tar\nrnx volume export data@before - | zstd > before.tar.zst",
)
@click.argument("source", type=CONTENT, shell_complete=volume_names)
@click.argument("file", default=STREAM, metavar="[FILE|-]", type=click.Path())
@click.option("--force", is_flag=True, help="Replace FILE where there is one.")
@pass_invocation
def export_command(invocation: Invocation, *, source: ContentArgument, file: str, force: bool) -> None:
    """Write the content of a volume, or of its snapshot, to FILE or stdout as a tar archive.

    FILE is there when it is whole, and not before.
    """
    if file == STREAM:
        if os.isatty(STDOUT):
            raise click.UsageError("a tar archive is nothing for a terminal: name a FILE, or send it into a pipe")
        _export(invocation, source, lambda data: write_all(STDOUT, data))
        return
    with whole_file(Path(file), replace=force) as write:
        size_bytes = _export(invocation, source, write)
    if invocation.json:
        print_json({"file": file, "bytes": size_bytes})
    else:
        print_line(f"{file}: {format_size(size_bytes)}")


@click.command("import", cls=Verb, example="rnx volume import data data.tar\nrnx volume import data -")
@name_argument
@click.argument("file", default=STREAM, metavar="[FILE|-]", type=click.Path())
@pass_invocation
def import_command(invocation: Invocation, *, name: str, file: str) -> None:
    """Unpack a tar archive from FILE or stdin into a volume, over what is there. No job may use it.

    It is no compressed one: unpack it on the way, as with zstd -dc data.tar.zst | rnx volume import data
    """
    if file == STREAM and sys.stdin.isatty():
        raise click.UsageError("a tar archive is not typed: name a FILE, or send one into stdin")
    with (
        _opened(file) as (descriptor, total_bytes),
        invocation.session() as session,
        transfer_progress("importing", total_bytes) as sent,
    ):
        volume = import_volume(session, name, _pieces(descriptor, file, sent))
    if invocation.json:
        print_json(volume_object(volume))
    else:
        print_line(f"{volume.name}: {format_size(volume.used_bytes)} of {format_size(volume.size_bytes)} are used")


def _export(invocation: Invocation, source: ContentArgument, write: Callable[[bytes], None]) -> int:
    """How many bytes went."""
    size_bytes = 0
    with invocation.session() as session, transfer_progress("exporting", None) as got:
        for data in export_volume(session, source.volume, snapshot=source.snapshot):
            write(data)
            got(len(data))
            size_bytes += len(data)
    return size_bytes


@contextmanager
def _opened(file: str) -> Iterator[tuple[int, int | None]]:
    """A descriptor to read from, and how much there is if that is known."""
    if file == STREAM:
        yield STDIN, None
        return
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as cause:
        raise invalid(f"cannot read {file}", cause.strerror or "") from cause
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise invalid(f"{file} is a directory", f"send it as an archive: tar -C {file} -c . | rnx volume import …")
        yield descriptor, status.st_size if stat.S_ISREG(status.st_mode) else None
    finally:
        os.close(descriptor)


def _pieces(descriptor: int, file: str, sent: Callable[[int], None]) -> Iterator[bytes]:
    try:
        while data := os.read(descriptor, CHUNK_BYTES):
            yield data
            sent(len(data))
    except OSError as cause:
        raise invalid(f"cannot read {file}", cause.strerror or "") from cause
