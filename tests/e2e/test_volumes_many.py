"""Five hundred volumes on one node: made, used and removed, and nothing of them is left."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cli.client.contexts import load_context
from cli.client.session import Session
from cli.client.volumes import list_volumes, remove_volume
from proto.joblet.v1 import job_pb2, volume_pb2
from tests.e2e.node import Node
from tests.e2e.volumes import MIB
from tests.leaks import mounts_below
from tests.waiting import wait_for

VOLUMES = 500
OF_ONE_JOB = 20
AT_ONCE = 4


@pytest.mark.requirement("S1.50", "S1.40")
@pytest.mark.timeout(600)
def test_five_hundred(own_node: Callable[..., Node]) -> None:
    """Each holds what was written into it; at most those stay mounted that may; the directory is empty in the end."""
    idle = 4
    node = own_node({"joblet": {"volumes": {"owner_count_max": VOLUMES, "idle_mounts_max": idle, "interval_ms": 1000}}})
    names = [f"v{n:03}" for n in range(VOLUMES)]
    with Session(load_context(node.config, "default")) as session, ThreadPoolExecutor(AT_ONCE) as threads:

        def create(name: str) -> None:
            session.volumes.CreateVolume(volume_pb2.CreateVolumeRequest(name=name, size_bytes=MIB), timeout=60)

        def use(first: int) -> None:
            mine = names[first : first + OF_ONE_JOB]
            script = f"for each in {' '.join(mine)}; do echo $each > /volumes/$each/name; done"
            spec = job_pb2.JobSpec(
                command="/bin/sh", args=("-c", script), volumes=[job_pb2.VolumeMount(name=name) for name in mine]
            )
            job = session.jobs.RunJob(job_pb2.RunJobRequest(spec=spec), timeout=60).job.id
            ended = session.jobs.WaitJob(job_pb2.WaitJobRequest(job_id=job), timeout=120)
            assert ended.state == job_pb2.COMPLETED, ended.reason

        def unused(name: str) -> bool:
            return not session.volumes.GetVolume(volume_pb2.GetVolumeRequest(name=name), timeout=60).uses

        list(threads.map(create, names))
        assert [volume.name for volume in list_volumes(session, labels={})] == names
        list(threads.map(use, range(0, VOLUMES, OF_ONE_JOB)))
        wait_for(lambda: all(unused(name) for name in names[-OF_ONE_JOB:]), timeout_s=60, what="the jobs to let go")
        wait_for(lambda: len(mounts(node)) <= idle, timeout_s=60, what="idle volumes to be unmounted")
        out = node.ok(
            "job", "run", "--volume", "v499:/a", "--volume", "v000:/b", "--", "/bin/cat", "/a/name", "/b/name"
        )
        assert out == b"v499\nv000\n"
        wait_for(lambda: unused("v499") and unused("v000"), timeout_s=30, what="the last job to let go")
        list(threads.map(lambda name: remove_volume(session, name, force=False), names))
        assert [*list_volumes(session, labels={})] == []
    wait_for(lambda: not mounts(node), timeout_s=60, what="no mount")
    assert not list((node.base / "volumes").iterdir())


def mounts(node: Node) -> list[str]:
    """Of the node's volumes."""
    return [each for each in mounts_below(node.base) if f"{node.base}/volumes/" in each]
