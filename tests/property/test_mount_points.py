"""Properties of mount points: whatever is taken is a plain path of the job's own, and nothing else is raised."""

import posixpath
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import JobletError, Reason
from common.messages.jobs import VolumeMount
from services.executor.mount_points import CLOSED, check_mounts, in_order, is_at_or_below

BINDS = ("/opt/tools",)
odd = ("data", "etc", "..", ".", "", "-x", "\u2024\u2024", "\uff0e\uff0e", "a\0b", "x" * 255, "é" * 128)
components = st.sampled_from(odd)
paths = st.lists(components | st.text(max_size=6), max_size=6).map("/".join) | st.text(max_size=40)
lists = st.lists(
    st.builds(
        VolumeMount,
        name=st.sampled_from("abcdef"),
        path=st.sampled_from(["/a", "/a/b", "/a/b/c", "/ab", "/a b", "/work", "/work/a", "/volumes/a", "/b/a"]),
    ),
    max_size=5,
)


def refusal(*mounts: VolumeMount) -> str:
    """Why these cannot be; empty: they can. Any exception but JobletError(INVALID) with a repair fails the test."""
    error = _raised(mounts)
    if error is None:
        return ""
    assert error.reason is Reason.INVALID
    assert error.detail
    assert len(error.message) < 400, "a refusal does not repeat what a client sent"
    return error.message


def _raised(mounts: tuple[VolumeMount, ...]) -> JobletError | None:
    try:
        check_mounts(mounts, BINDS)
    except JobletError as error:
        return error
    return None


def at(path: str) -> VolumeMount:
    """A volume at this path."""
    return VolumeMount(name="data", path=path)


@pytest.mark.requirement("S1.12")
@pytest.mark.threat("D25")
@given(paths.map(lambda path: path if path.startswith("/") else f"/{path}") | paths)
@example("/data/../etc")
@example("/data\0/x")
@example("/" + "x" * 256)
@example("/" + "é" * 128)
@example("/" + "a/" * 2048)
@example("/\ud800")
def test_what_is_taken_is_a_plain_path_of_the_jobs(path: str) -> None:
    """Absolute, normalized, encodable, within the kernel's bounds, not above or in what joblet makes."""
    if refusal(at(path)):
        return
    encoded = path.encode()
    assert path.startswith("/")
    assert posixpath.normpath(path) == path != "/"
    assert len(encoded) <= 4095
    assert all(0 < len(part) <= 255 and part not in (b".", b"..") for part in encoded.split(b"/")[1:])
    assert not any(unicodedata.category(character) == "Cc" and character < "\x80" for character in path)
    assert not any(is_at_or_below(path, top) for top in (*CLOSED, *BINDS))


@pytest.mark.requirement("S1.12")
@pytest.mark.requirement("S1.48")
@pytest.mark.threat("D25")
@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("", "absolute"),
        ("data", "absolute"),
        ("-v", "absolute"),
        ("\uff0fetc", "absolute"),
        ("/", "root"),
        ("//", "normalized"),
        ("//etc", "'/etc' is what it would mean"),
        ("/data/", "'/data' is what it would mean"),
        ("/data//x", "normalized"),
        ("/./data", "normalized"),
        ("/data/..", "normalized"),
        ("/data/../../etc", "'/etc' is what it would mean"),
        ("/data\0", "control character"),
        ("/data\n/x", "control character"),
        ("/da\x7fta", "control character"),
        ("/\ud800", "Unicode"),
        ("/" + "x" * 256, "256 bytes"),
        ("/" + "é" * 128, "256 bytes"),
        ("/" + "/".join(["x" * 200] * 21), "4221 bytes"),
        ("/volumes", "its own directory"),
        *((path, "not the job's") for path in (*CLOSED, "/etc/passwd", "/proc/1/root", "/dev/shm", "/usr/local/x")),
        ("/opt/tools", "/opt/tools"),
        ("/opt/tools/x", "/opt/tools"),
        ("/" + "/".join("x" * 257), "256 directories"),
    ],
)
def test_each_refusal_says_what_is_wrong(path: str, word: str) -> None:
    """In words that name it."""
    assert word in refusal(at(path))


@pytest.mark.parametrize(
    "path",
    [
        "/data",
        "/volumes/data",
        "/work",
        "/work/a",
        "/tmp",
        "/tmp/a",
        "/etcetera",
        "/-x",
        "/a b",
        "/opt",
        "/home/\u2024\u2024/x",
        "/" + "x" * 255,
        "/" + "/".join("x" * 256),
        "/\uff45tc",
        "/library",
        "/run/x",
        "/a\\b",
        "/volumes.d",
    ],
)
def test_a_plain_path_is_taken(path: str) -> None:
    """Also odd ones: letters that look like others are others, for the kernel too."""
    assert refusal(at(path)) == ""


@given(lists)
def test_a_job_has_a_volume_once_and_a_place_once(mounts: list[VolumeMount]) -> None:
    """Two of a name or two at a path are refused, and nothing else of these."""
    unique = len({mount.name for mount in mounts}) == len({mount.path for mount in mounts}) == len(mounts)
    assert bool(refusal(*mounts)) != unique


@given(lists)
def test_who_holds_a_mount_point_comes_before_it(mounts: list[VolumeMount]) -> None:
    """Whatever the order they are asked for in; none is lost."""
    ordered = in_order(mounts)
    assert sorted(ordered, key=repr) == sorted(mounts, key=repr)
    for number, mount in enumerate(ordered):
        later = [other.path for other in ordered[number:] if other.path != mount.path]
        assert not any(is_at_or_below(mount.path, path) for path in later)


def test_there_are_bounds() -> None:
    """32 volumes, of well-formed names."""
    many = [VolumeMount(name=f"v{number}", path=f"/volumes/v{number}") for number in range(33)]
    assert refusal(*many[:32]) == ""
    assert "at most 32" in refusal(*many)
    for name in ("", "..", "a/b", "-x", "x" * 64, "a\n", "é"):
        assert "volume name" in refusal(VolumeMount(name=name, path="/data"))
