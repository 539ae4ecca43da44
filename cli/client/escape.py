r"""Text from a job or a server, made harmless for a terminal.

Here: which characters a terminal must not receive, and how they are shown instead: `\x1b`, `\u202e`. Not here: when to
escape; that depends on whether the reader is a terminal (`cli/rnx/sink.py`). Answers to threat C20: a job's output,
name, label or error text must not move the cursor, set the clipboard or hide other lines. ECMA-48 defines the control
functions; C1 codes count, as some terminals obey them in UTF-8, too.
"""

import codecs
import re

# C0 but tab and newline, DEL and C1; line and paragraph separator; bidirectional embeddings, overrides and isolates;
# lone surrogates stand for bytes that are no UTF-8.
_DANGEROUS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_BYTE_SURROGATE = 0xDC00


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if _BYTE_SURROGATE + 0x80 <= code <= _BYTE_SURROGATE + 0xFF:
        return f"\\x{code - _BYTE_SURROGATE:02x}"
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"


def escape(text: str) -> str:
    """`text` with control characters shown; tabs and newlines stay."""
    return _DANGEROUS.sub(_shown, text)


def escape_line(text: str) -> str:
    """`text` on one line: as `escape`, and runs of white space become one space."""
    return escape(" ".join(text.split()))


class TerminalText:
    """Output of one stream of a job as a terminal may see it, piece by piece.

    Keeps the beginning of a character that a piece cut off until the rest comes. A carriage return directly before a
    newline is an ordinary line end and is dropped; any other is shown.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def feed(self, data: bytes, *, final: bool = False) -> bytes:
        """UTF-8 that is safe to write; `final` gives up what was kept back."""
        text = self._decoder.decode(data, final)
        return escape(text.replace("\r\n", "\n")).encode("utf-8")
