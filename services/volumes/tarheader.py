"""The headers of a tar archive that somebody hostile has written: bytes → one `Entry`, or a refusal.

tarfile.open() is not used: it reads a header of any length into memory and calls itself for each of them. Of tarfile
one block's meaning is taken. References: pax(1) of POSIX.1-2017 (ustar and extended headers), GNU tar "Basic Format".
"""

import tarfile
from typing import Final, NamedTuple

from common.errors import JobletError, invalid
from services.volumes.descent import shown
from services.volumes.tarstream import BLOCK_BYTES, Incoming

HEADER_BYTES_MAX: Final = 8 * 2**20
"""Of one extended header. A path of 10,000 directories with names of 255 bytes takes a third of it."""
HEADERS_MAX: Final = 8
"""Before one entry. At most one of each kind is what programs write."""
SIZE_MAX: Final = 2**63 - 1
_MTIME_S_MAX: Final = 2**40
_NANOSECOND_DIGITS: Final = 9
_PAX_TYPES: Final = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_KNOWN: Final = frozenset({"path", "linkpath", "size", "mtime"})
_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip: unpack it first (gunzip)",
    b"BZh": "bzip2: unpack it first (bunzip2)",
    b"\xfd7zXZ": "xz: unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "zstd: unpack it first (unzstd)",
}


class Entry(NamedTuple):
    """One thing in an archive."""

    name: str
    type: bytes  # one of tarfile's; AREGTYPE and CONTTYPE have become REGTYPE
    linkname: str
    size: int  # of the content that follows; 0 of anything but a file
    mode: int
    mtime_ns: int | None  # None: nothing that a file system could take


class Headers:
    """Reads entry after entry; the caller has read, or skipped, the content of the one before."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._globals: dict[str, str] = {}
        self._begun = False

    def next(self) -> Entry | None:
        """None: the archive has ended. INVALID: it is none, or no longer one."""
        found = dict(self._globals)
        for _ in range(HEADERS_MAX):
            header = self._block()
            if header is None:
                return None
            if header.type in _PAX_TYPES:
                records = self._pax(header)
                if header.type == tarfile.XGLTYPE:
                    self._globals.update(records)
                found.update(records)
            elif header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                key = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                found[key] = _text(self._content(header).split(b"\0", 1)[0])
            else:
                return _entry(header, found)
        raise invalid(f"the archive has more than {HEADERS_MAX} headers for one entry", "make it with tar")

    def _block(self) -> tarfile.TarInfo | None:
        block = self._incoming.block()
        begun, self._begun = self._begun, True
        if not begun:
            for magic, what in _COMPRESSED.items():
                if block.startswith(magic):
                    raise invalid("the archive is compressed", what)
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # not in its stub
            return None
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as cause:  # type: ignore[attr-defined]  # likewise
            what = "the archive is cut off" if begun else "this is no tar archive"
            raise invalid(what, "send it again, whole") from cause
        except (tarfile.HeaderError, ValueError) as cause:
            what = "the archive is damaged" if begun else "this is no tar archive"
            raise invalid(what, "make it with tar, and do not compress it") from cause

    def _content(self, header: tarfile.TarInfo) -> bytes:
        if not 0 <= header.size <= HEADER_BYTES_MAX:
            raise invalid(f"the archive has a header of {header.size} bytes", f"{HEADER_BYTES_MAX} are the most")
        content = self._incoming.exactly(header.size)
        self._incoming.skip(-header.size % BLOCK_BYTES)
        return content

    def _pax(self, header: tarfile.TarInfo) -> dict[str, str]:
        """Records (a length, a space, KEY=VALUE, an end of line), as far as they mean something here."""
        content, records, position = self._content(header), {}, 0
        while position < len(content) and content[position]:
            space = content.find(b" ", position, position + 20)
            length = _number(content[position:space].decode("latin-1")) if space > 0 else 0
            end = position + length
            equals = content.find(b"=", space, end)
            if not 0 <= space < equals < end <= len(content) or content[end - 1 : end] != b"\n":
                raise invalid("the archive has an extended header that is none", "make it with tar")
            key = _text(content[space + 1 : equals])
            if key.startswith("GNU.sparse."):
                raise _sparse(header.name)
            if key in _KNOWN:
                records[key] = _text(content[equals + 1 : end - 1])
            position = end
        return records


def _entry(header: tarfile.TarInfo, found: dict[str, str]) -> Entry:
    name, kind = found.get("path", header.name), header.type
    if kind == tarfile.GNUTYPE_SPARSE:
        raise _sparse(name)
    if kind == tarfile.AREGTYPE and name.endswith("/"):
        kind = tarfile.DIRTYPE
    if kind in tarfile.REGULAR_TYPES:
        kind = tarfile.REGTYPE
    size = _number(found["size"]) if "size" in found else header.size
    if not 0 <= size <= SIZE_MAX:
        raise invalid(f"{shown(name)} has a size that no file has: {size}", "make the archive again")
    return Entry(
        name=name,
        type=kind,
        linkname=found.get("linkpath", header.linkname),
        size=size if kind == tarfile.REGTYPE else 0,
        mode=int(header.mode),
        mtime_ns=_nanoseconds(found.get("mtime", str(int(header.mtime)))),
    )


def _sparse(name: str) -> JobletError:
    return invalid(f"{shown(name)} is stored as a sparse file", "make the archive without --sparse")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _number(text: str) -> int:
    """Of ASCII digits, and no more of them than 64 bits take: int() of a long text takes its time."""
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise invalid(f"the archive has {shown(text)} where a number must be", "make it with tar")
    return int(text)


def _nanoseconds(text: str) -> int | None:
    """Of seconds with a sign and digits behind the point; not by float, which has too few digits."""
    seconds, _, fraction = text.removeprefix("-").partition(".")
    nanoseconds = _number(seconds) * 10**9 + _number(fraction[:_NANOSECOND_DIGITS].ljust(_NANOSECOND_DIGITS, "0"))
    if nanoseconds > _MTIME_S_MAX * 10**9:
        return None
    return -nanoseconds if text.startswith("-") else nanoseconds
