"""Names that cross process boundaries, and the one place that says which of them are well-formed.

An identifier that came from outside is checked here before it meets a path, a topic or a query.
"""

import re
import uuid
from typing import NewType

from common.errors import invalid

JobId = NewType("JobId", str)
"""A UUIDv4 in its canonical form: 36 characters of [0-9a-f-]."""

VolumeId = NewType("VolumeId", str)
"""Likewise. A volume's name is its owner's choice; its id names its place on the node."""

JOB_PREFIX_CHARACTERS_MIN = 8

_JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_JOB_PREFIX = re.compile(r"[0-9a-f-]{8,36}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_KEY = re.compile(r"[A-Za-z0-9_.:/@-]{1,128}")


def new_job_id() -> JobId:
    """A fresh random job id."""
    return JobId(str(uuid.uuid4()))


def parse_job_id(text: str) -> JobId:
    """The full job id in `text`, or `JobletError(INVALID)`."""
    if not _JOB_ID.fullmatch(text):
        raise invalid(f"malformed job id {text[:64]!r}", "a job id looks like 6fa459ea-ee8a-4ca4-894e-db77e160355e")
    return JobId(text)


def new_volume_id() -> VolumeId:
    """A fresh random volume id."""
    return VolumeId(str(uuid.uuid4()))


def parse_volume_id(text: str) -> VolumeId:
    """The full volume id in `text`, or `JobletError(INVALID)`."""
    if not _JOB_ID.fullmatch(text):
        raise invalid(f"malformed volume id {text[:64]!r}", "a volume id looks like a job id: 36 characters")
    return VolumeId(text)


def parse_job_reference(text: str) -> str:
    """A full job id or a prefix of one with at least 8 characters, or `JobletError(INVALID)`."""
    if not _JOB_PREFIX.fullmatch(text):
        raise invalid(
            f"malformed job id {text[:64]!r}",
            f"give the full id or at least its first {JOB_PREFIX_CHARACTERS_MIN} characters",
        )
    return text


def parse_name(text: str, what: str) -> str:
    """A name for a `what` (job, volume, label …), or `JobletError(INVALID)`."""
    if not _NAME.fullmatch(text):
        raise invalid(
            f"malformed {what} name {text[:64]!r}",
            "use 1 to 63 letters, digits, '_', '.' and '-', beginning with a letter or digit",
        )
    return text


def parse_node_id(text: str) -> str:
    """A node id, or `JobletError(INVALID)`."""
    if not _NODE_ID.fullmatch(text):
        raise invalid(f"malformed node id {text[:64]!r}", "use 1 to 128 letters, digits, '_', '.' and '-'")
    return text


def parse_key(text: str, what: str) -> str:
    """An idempotency key or similar opaque token of a client, or `JobletError(INVALID)`."""
    if not _KEY.fullmatch(text):
        raise invalid(f"malformed {what} {text[:64]!r}", "use 1 to 128 letters, digits and any of _ . : / @ -")
    return text
