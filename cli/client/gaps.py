"""What is missing of a job's output, in words: from, to, how many, how many bytes, where it was lost and why.

Here: one line of text for one gap. Not here: where it is printed (`cli/rnx/sink.py`, `cli/joblet/verify.py`).
docs/storage-format.md and docs/protocol.md list the reasons.
"""

from typing import Final

from common.quantities import format_size

WORDS: Final = {
    "journal_full": "dropped by the node: the job's journal was full",
    "journal_damaged": "lost on the node: the job's journal was damaged there",
    "never_received": "lost between the job's journal and the store: it was never received",
    "damaged": "lost in the store: the stored file is damaged there",
    "retention": "removed from the store by the node's retention rules",
    "removed": "removed from the store: it was there once",
    "not_stored": "missing in the store, which does not say why",
}
"""Each reason that a node gives. One that is not known here is told as it is."""


def gap_text(first: int, count: int, reason: str, *, size_bytes: int = 0, stream: str = "") -> str:
    """`entries 2 to 4 of stdout (3 entries, 2.0 KiB): dropped by …`. `size_bytes` 0 and `stream` empty: not known."""
    which = f"entry {first}" if count == 1 else f"entries {first} to {first + count - 1}"
    where = f" of {stream}" if stream else ""
    many = f"{count} {'entry' if count == 1 else 'entries'}"
    size = f", {format_size(size_bytes)}" if size_bytes else ""
    return f"{which}{where} ({many}{size}): {WORDS.get(reason, reason or 'no reason was given')}"
