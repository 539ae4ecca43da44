"""Volumes that are a directory of a larger file system: `{volumes}/<id>/data`, whose content a job may change any time.

What `project.py` and `directory.py` have in common: making, snapshots, restoring. A snapshot is a tree of its own, and
of a volume that is in use it is as the files came, not of one moment: nobody may freeze a file system that others use.

Restoring has two renames, and whoever comes after an interruption between them completes it:

    restored/ is made, whole     data → replaced, restored → data     replaced is removed
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.failpoints import reached
from common.messages.volumes import CopyMethod
from services.volumes.ports import Ids, Place
from services.volumes.storage import places
from services.volumes.storage.copytree import copy_tree

_INCOMING: Final = "incoming"
_RESTORED: Final = "restored"
_REPLACED: Final = "replaced"

Prepare = Callable[[int], None]
"""Makes an empty directory, by descriptor, one whose content counts for the volume."""


def create(home: Path, prepare: Prepare) -> None:
    """An empty volume, where there was none or a part of one."""
    places.discard(home)
    try:
        places.make(home)
        reached("volumes.allocated")
        new = places.make_in(home, _INCOMING)
        with places.opened(new) as directory:
            os.fchmod(directory, 0o755)
            prepare(directory)
        new.rename(home / places.DATA)
        places.synchronize(home)
    except Exception:
        places.discard(home)
        raise
    reached("volumes.formatted")


def mount(home: Path, ids: Ids | None) -> Place:
    """Where it is; nothing has to be mounted."""
    _complete(home)
    data = home / places.DATA
    with places.opened(home), places.opened(data) as directory:
        places.give(directory, ids)
        return places.place(data, directory)


def snapshot(home: Path, name: str) -> CopyMethod:
    """A copy of the volume as it is."""
    _complete(home)
    method = _copy(home / places.DATA, places.snapshot_path(home, name))
    reached("volumes.copied")
    return method


def drop_snapshot(home: Path, name: str) -> None:
    """Remove one."""
    path = places.snapshot_path(home, name)
    for each in (path, path.with_name(f"{name}.new"), path.with_name(f"{name}.new.links")):  # of an interrupted copy
        places.discard(each)


def snapshot_place(home: Path, name: str) -> Place:
    """Where it is, for who reads it."""
    path = places.snapshot_path(home, name)
    with places.opened(path) as directory:
        return places.place(path, directory)


def restore(home: Path, name: str, prepare: Prepare) -> None:
    """The volume becomes the snapshot."""
    _complete(home)
    _take_in(places.snapshot_path(home, name), home, home / _RESTORED, prepare)
    places.discard(home / _REPLACED)
    (home / places.DATA).rename(home / _REPLACED)
    _complete(home)


def clone(source: Path, name: str, home: Path, prepare: Prepare) -> CopyMethod:
    """A new volume `home` from the volume in `source`, or from its snapshot `name`."""
    original = places.snapshot_path(source, name) if name else source / places.DATA
    places.discard(home)
    try:
        places.make(home)
        method = _take_in(original, home, home / places.DATA, prepare)
    except Exception:
        places.discard(home)
        raise
    reached("volumes.copied")
    return method


def _take_in(source: Path, home: Path, target: Path, prepare: Prepare) -> CopyMethod:
    """A copy of `source`, all of which counts for the volume from the first byte on."""
    incoming = home / _INCOMING
    places.discard(target)
    places.discard(incoming)
    incoming.mkdir(mode=0o700)
    with places.opened(incoming) as directory:
        prepare(directory)
    method = _copy(source, incoming / places.DATA)
    (incoming / places.DATA).rename(target)
    places.synchronize(home)
    places.discard(incoming)
    return method


def _complete(home: Path) -> None:
    """What an interrupted restore left."""
    if not os.path.lexists(home / places.DATA) and os.path.lexists(home / _RESTORED):
        (home / _RESTORED).rename(home / places.DATA)
        places.synchronize(home)
    places.discard(home / _REPLACED)


def _copy(source: Path, target: Path) -> CopyMethod:
    places.discard(target)
    with places.opened(source):
        return copy_tree(str(source), str(target))
