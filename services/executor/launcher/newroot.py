"""The root directory in the making: every path below it is resolved by the kernel as if it were `/` already.

See openat2(2). Not here: what is put into it (`operations.py`).
"""

import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager

from common.linux.paths import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2


class NewRoot:
    """The directory that becomes the job's root. `path` is on the host, empty and inside the job's directory.

    It is open from the mount of the root to its seal, also behind the change of root.

    Modes are as given: the process has umask 0.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = -1
        self.trees: dict[str, int] = {}
        """Detached mounts that were taken on the host and wait for their place in the root, by name."""

    def open(self) -> None:
        """Hold the directory at `path`, with what is mounted there now."""
        self.descriptor = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    @contextmanager
    def at(self, path: str, flags: int = os.O_PATH) -> Iterator[int]:
        """A descriptor of `path`, an absolute path inside. A symbolic link out of the root leads to the root."""
        descriptor = openat2(self.descriptor, path, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """A descriptor of the directory `path`, an absolute path inside, which leads through no symbolic link."""
        # Without O_NOFOLLOW, with which a link at the end would be opened itself, and told as "not a directory".
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
        descriptor = openat2(self.descriptor, path, os.O_PATH | os.O_DIRECTORY, resolve=resolve)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        """A new directory; its parent exists."""
        parent, name = posixpath.split(path)
        with self.at(parent) as directory:
            os.mkdir(name, mode, dir_fd=directory)

    def make_file(self, path: str, content: bytes = b"", mode: int = 0o644) -> None:
        """A new file; its parent exists."""
        parent, name = posixpath.split(path)
        with self.at(parent) as directory:
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=directory)
            try:
                if content and os.write(descriptor, content) != len(content):
                    raise OSError(28, f"write: file is cut off: {path}", path)
            finally:
                os.close(descriptor)

    def make_symlink(self, path: str, target: str) -> None:
        """A new symbolic link; its parent exists."""
        parent, name = posixpath.split(path)
        with self.at(parent) as directory:
            os.symlink(target, name, dir_fd=directory)

    def enter(self) -> None:
        """The root has become this process's own: hold it as such."""
        os.close(self.descriptor)
        self.descriptor = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)
        self.descriptor = -1
