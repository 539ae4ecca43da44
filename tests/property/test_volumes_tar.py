"""Whatever tree a job leaves in its volume: what is exported and imported again is the same tree."""

import os
import stat
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from services.volumes.storage.copytree import copy_tree, remove_tree
from tests.unit.volume_tars import pack, tree, unpack

names = st.one_of(
    st.sampled_from([b"a", b"b", b"...", b"-", b" ", b"n" * 255, b"\\", b"\n", b"\xff", "é".encode(), b"x" * 99]),
    st.binary(min_size=1, max_size=40).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_")),
).filter(lambda name: name not in (b".", b".."))
large = {"hole": bytes(70_000), "block": b"x" * 512, "mixed": b"\0" * 65_535 + b"x" * 65_538, "odd": b"end" * 170}
contents = st.one_of(st.binary(max_size=2000), st.sampled_from(sorted(large)).map(large.__getitem__))
times = st.integers(-(10**18), 4 * 10**18)
modes = st.integers(0, 0o777)
things = st.recursive(
    st.one_of(
        st.tuples(st.just("file"), contents, modes, times),
        st.tuples(
            st.just("link"), st.binary(min_size=1, max_size=300).map(lambda raw: raw.replace(b"\0", b"_")), times
        ),
        st.tuples(st.just("fifo"), modes, times),
        st.tuples(st.just("same"), st.integers(0, 100)),
    ),
    lambda below: st.tuples(st.just("directory"), st.dictionaries(names, below, max_size=5), modes, times),
    max_leaves=12,
)


def build(directory: bytes, content: dict[bytes, tuple[object, ...]], made: list[bytes]) -> None:
    """Make it. `made`: paths that can have another name."""
    for name, (kind, *fields) in content.items():
        path = directory + b"/" + name
        match kind, fields:
            case "file", [bytes() as written, int() as mode, int() as time_ns]:
                Path(os.fsdecode(path)).write_bytes(written)
                Path(os.fsdecode(path)).chmod(mode | stat.S_IRUSR)
                os.utime(path, ns=(time_ns, time_ns))
                made.append(path)
            case "link", [bytes() as target, int() as time_ns]:
                Path(os.fsdecode(path)).symlink_to(os.fsdecode(target))
                os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)
                made.append(path)
            case "fifo", [int() as mode, int() as time_ns]:
                os.mkfifo(path)
                Path(os.fsdecode(path)).chmod(mode)
                os.utime(path, ns=(time_ns, time_ns))
                made.append(path)
            case "same", [int() as which] if made:
                os.link(made[which % len(made)], path, follow_symlinks=False)
            case "directory", [dict() as below, int() as mode, int() as time_ns]:
                Path(os.fsdecode(path)).mkdir()
                build(path, below, made)
                Path(os.fsdecode(path)).chmod(mode | stat.S_IRWXU)
                os.utime(path, ns=(time_ns, time_ns))


@settings(max_examples=150, deadline=None)
@given(content=st.dictionaries(names, things, max_size=6))
def test_a_tree_survives_export_import_and_copying(content: dict[bytes, tuple[object, ...]]) -> None:
    """Names, modes, times, contents, links of both kinds: after a stream and after a copy; nothing else is left."""
    with tempfile.TemporaryDirectory() as base:
        original, imported, copied = (Path(base) / name for name in ("original", "imported", "copied"))
        original.mkdir()
        imported.mkdir()
        build(os.fsencode(original), content, [])
        expected = tree(original)
        sent, writer = pack(original)
        reader = unpack(sent, imported)
        assert tree(imported) == expected
        assert (writer.entries, writer.bytes) == (reader.entries, reader.bytes)
        assert writer.entries == len(expected)
        copy_tree(str(original), str(copied))
        assert tree(copied) == expected
        assert {path.name for path in Path(base).iterdir()} == {"original", "imported", "copied"}
        for root in (original, imported, copied):
            remove_tree(root)
