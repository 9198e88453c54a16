"""A stage computes on the device that it is told, and what a GPU does is waited for.

Without a GPU, torch's "meta" device stands for one: tensors without numbers, which do not mix with a CPU's.
What needs the numbers is in tests/integration/test_gpu.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.planning.memory import PROCESS_OVERHEAD_BYTES
from ravnest_p2p.daemon.worker.meter import Meter
from ravnest_p2p.model import Package, StageComputation, TensorSpec, capture, stage_program
from ravnest_p2p.model.footprint import StorageMeter
from ravnest_p2p.training import averaging, check_memory, choose_device, start_device, synchronize, works
from tests.unit import model_zoo

OTHER, CPU = torch.device("meta"), torch.device("cpu")


@pytest.fixture(scope="module")
def packages() -> dict[str, Package]:
    cases = {name: model_zoo.make(name) for name in model_zoo.CASES}
    return {n: capture(c.model, c.inputs, loss=c.loss, example_labels=c.labels) for n, c in cases.items()}


def made(spec: TensorSpec) -> Tensor:
    tensor = torch.empty(spec.shape, dtype=spec.torch_dtype, device=OTHER)
    return tensor.requires_grad_(spec.differentiable)


@pytest.mark.parametrize("name", sorted(model_zoo.CASES))
def test_everything_of_a_stage_lies_on_its_device(packages: Mapping[str, Package], name: str) -> None:
    program = packages[name].program
    count = len(program.layer_bounds)
    for lo, hi in ((0, count // 2), (count // 2, count)):
        stage = stage_program(program, lo, hi)
        of = {n: made(stage.tensor_spec(n)) for n in (*stage.params, *stage.buffers, *stage.data_inputs)}
        received = [made(spec) for spec in stage.receives]
        sent = StageComputation(stage, OTHER, reseed=False).forward(of, of, received, of, 0)
        roots = [tensor for tensor in sent if tensor.requires_grad]
        wanted = [tensor for tensor in (*of.values(), *received) if tensor.requires_grad]
        gradients = torch.autograd.grad(
            roots, wanted, [torch.empty_like(r) for r in roots], allow_unused=True
        )
        assert {t.device for t in (*sent, *gradients) if t is not None} == {OTHER}


def test_tensors_of_two_devices_do_not_mix() -> None:
    """Else the test before would prove nothing."""
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(3, device=OTHER) + torch.ones(3)


def test_only_the_devices_memory_is_counted() -> None:
    with StorageMeter(device=CPU) as meter:
        kept = [torch.empty(1000), torch.empty(5000, device=OTHER)]
        assert meter.bytes == 4000
        del kept[0]
        assert (meter.bytes, meter.peak_bytes) == (0, 4000)


def test_an_operation_ends_when_the_device_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(
        "ravnest_p2p.daemon.worker.meter.synchronize", lambda device: done.append(f"waited for {device}")
    )
    meter = Meter(tmp_path, 0, device=CPU)
    meter.timed(lambda: done.append("told"))
    meter.close()
    assert done == ["told", "waited for cpu"]


def test_a_cpu_needs_no_start_and_never_fails() -> None:
    start_device(CPU, 0)
    synchronize(CPU)
    assert works(CPU)


def test_a_worker_on_the_cpu_wakes_no_gpus_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("the driver was asked"))
    assert choose_device("cpu") == CPU


def test_too_little_of_a_gpu_is_refused_before_it_is_started() -> None:
    for lent in (0, PROCESS_OVERHEAD_BYTES - 1):
        with pytest.raises(ConfigError, match=r"lend at least 300 MiB of cuda, by --memory"):
            start_device(torch.device("cuda"), lent)
    check_memory("cuda", PROCESS_OVERHEAD_BYTES)
    check_memory("cpu", 0)


def test_a_device_that_has_failed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: torch.device) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("ravnest_p2p.training.device.synchronize", fails)
    assert not works(torch.device("cuda"))


def test_the_length_of_a_gathered_vector_is_known_before(packages: Mapping[str, Package]) -> None:
    weights = packages["cnn"].weights
    names = sorted(weights)
    assert averaging.elements({}, weights, names) == averaging.gather({}, weights, names).numel()
