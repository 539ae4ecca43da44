"""When limits and weights of input and output hold, and what is told where they do not."""

from pathlib import Path

import pytest

from services.executor.cgroups.disks import Disk
from services.executor.cgroups.driver import Write
from services.executor.cgroups.io_offers import (
    costed_devices,
    limit_offer,
    read_costed_devices,
    refused_by_kernel,
    weight_offer,
)
from services.executor.cgroups.refusals import Offer

VDA, SDB = Disk("254:0", "vda"), Disk("8:16", "sdb")
GIVEN = Offer(available=True, repair="")


def test_limits_hold_on_every_disk_or_not_at_all() -> None:
    """One device that the kernel does not limit is enough to refuse, by its name and with the kernel's word."""
    assert limit_offer(GIVEN, (VDA, SDB), {}).available
    refused = limit_offer(GIVEN, (VDA, SDB), {"8:16": "Operation not supported"})
    assert not refused.available
    assert "sdb: Operation not supported" in refused.repair
    assert "vda" not in refused.repair
    assert not limit_offer(GIVEN, (), {}).available
    assert limit_offer(Offer(available=False, repair="mount it"), (), {}).repair == "mount it"


def shared_by(**schedulers: str) -> Offer:
    """The offer of weight 500 on two disks with these schedulers."""
    return weight_offer(500, (VDA, SDB), bfq=GIVEN, scheduler=lambda disk: schedulers[disk.name])


@pytest.mark.requirement("S2.31")
def test_a_weight_needs_something_that_shares_by_it() -> None:
    """BFQ on every disk; where it is missing the repair is told for each of these disks, and for no other."""
    assert shared_by(vda="bfq", sdb="bfq").available
    refused = shared_by(vda="bfq", sdb="mq-deadline")
    assert not refused.available
    assert "echo bfq > /sys/block/sdb/queue/scheduler" in refused.repair
    assert "vda" not in refused.repair
    assert not weight_offer(500, (), bfq=GIVEN, scheduler=lambda _: "bfq").available


def test_the_cost_model_shares_as_well() -> None:
    """With v2 a disk whose cost model is on needs no BFQ; the others do."""
    without = Offer(available=False, repair="this kernel has no io.bfq.weight")
    both = frozenset({"254:0", "8:16"})
    assert weight_offer(10_000, (VDA, SDB), bfq=without, scheduler=lambda _: "none", costed=both).available
    one = weight_offer(500, (VDA, SDB), bfq=GIVEN, scheduler=lambda _: "none", costed=frozenset({"254:0"}))
    assert "sdb" in one.repair
    assert weight_offer(500, (VDA,), bfq=without, scheduler=lambda _: "bfq") == without


@pytest.mark.parametrize(("weight", "available"), [(1, True), (1000, True), (1001, False)])
def test_weights_of_bfq(weight: int, *, available: bool) -> None:
    """It knows 1 to 1000; more is refused rather than written as less."""
    offer = weight_offer(weight, (VDA,), bfq=GIVEN, scheduler=lambda _: "bfq")
    assert offer.available is available


def test_costed_devices(tmp_path: Path) -> None:
    """Those with enable=1 in io.cost.qos, which only the root of the hierarchy has."""
    text = "254:0 enable=1 ctrl=auto rpct=0.00\n8:16 enable=0 ctrl=auto\n\n"
    assert costed_devices(text) == {"254:0"}
    (tmp_path / "a/b").mkdir(parents=True)
    assert read_costed_devices(f"{tmp_path}/a/b") == frozenset()
    (tmp_path / "io.cost.qos").write_text(text)
    assert read_costed_devices(f"{tmp_path}/a/b") == {"254:0"}


def test_devices_that_the_kernel_refuses(tmp_path: Path) -> None:
    """It is tried; the reason is kept by device."""
    (tmp_path / "io.max").touch()
    tries = [(VDA, Write(f"{tmp_path}/io.max", "254:0 rbps=max")), (SDB, Write("/dev/full", "8:16 rbps=max"))]
    assert refused_by_kernel(tries) == {"8:16": "No space left on device"}
