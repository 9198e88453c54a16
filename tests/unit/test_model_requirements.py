"""Requirements, reports and proposed splits: exact where they say so, and the planner's own numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from functools import cache
from io import StringIO

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from ravnest_p2p.cli.inspect_view import print_report
from ravnest_p2p.core.errors import CaptureError, ConfigError, PlanningError
from ravnest_p2p.core.planning.cost import stage_need_bytes
from ravnest_p2p.core.planning.cuts import LayerTable
from ravnest_p2p.core.types import OptimizerSpec
from ravnest_p2p.model import (
    Package,
    Requirements,
    Terms,
    capture,
    capture_without_weights,
    is_weightless,
    measured_layers,
    requirements,
    split_program,
)
from ravnest_p2p.model.blocks import signatures
from ravnest_p2p.model.fitting import a_peer, equal_peers, fit
from ravnest_p2p.model.footprint import StorageMeter, footprint
from ravnest_p2p.model.profile import stand_in
from ravnest_p2p.model.report_svg import svg_of
from tests.unit.model_zoo import CASES, CharGpt, flat_cross_entropy, make

MB = 1_000_000


@cache
def captured(name: str) -> Package:
    case = make(name)
    return capture(case.model, case.inputs, loss=case.loss, example_labels=case.labels)


@cache
def deep() -> Package:
    torch.manual_seed(0)
    tokens = torch.randint(20, (2, 8))
    model = CharGpt(depth=6, width=32)
    return capture(model, (tokens,), loss=flat_cross_entropy, example_labels=(tokens.roll(-1, 1),))


@pytest.mark.parametrize("name", CASES)
def test_without_weights_the_program_is_the_same_to_the_last_byte(name: str) -> None:
    case = make(name)
    with torch.device("meta"):
        shapes = make(name).model
    assert is_weightless(shapes)
    assert not is_weightless(case.model)
    for model in (shapes, case.model):
        found = capture_without_weights(model, case.inputs, loss=case.loss, example_labels=case.labels)
        assert found.program.to_json() == captured(name).program.to_json()
        assert not found.weights
    assert all(p.is_meta for p in shapes.parameters())


def test_without_weights_nothing_can_be_saved(tmp_path: object) -> None:
    case = make("mlp")
    package = capture_without_weights(case.model, case.inputs, loss=case.loss, example_labels=case.labels)
    assert not package.report(stages=2).checked
    with pytest.raises(CaptureError, match="without weights"):
        package.save(str(tmp_path))


def test_a_model_too_large_for_any_machine_is_analysed() -> None:
    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(1 << 16, 1 << 16) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).relu()
            return x

    with torch.device("meta"):
        model = Huge()
    x = torch.zeros(1, 1 << 16)
    package = capture_without_weights(model, (x,), loss=F.mse_loss, example_labels=(x,))
    report = package.report(stages=4)
    assert report.params == 4 * ((1 << 32) + (1 << 16))
    assert [stage.need.hi - stage.need.lo for stage in report.stages] == [1, 1, 1, 1]
    assert all(stage.need.memory.needed > 5 * 1.6 * (1 << 34) for stage in report.stages)


def test_what_cannot_be_captured_is_said_without_weights_too() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return y if y.sum() > 0 else -y

    with torch.device("meta"):
        model = Branch()
    x = torch.zeros(2, 4)
    with pytest.raises(CaptureError, match=r"torch\.where"):
        capture_without_weights(model, (x,), loss=F.mse_loss, example_labels=(x,))


@pytest.mark.parametrize("name", CASES)
def test_footprint_on_fakes_is_that_of_real_tensors(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    package = captured(name)
    for stage in split_program(package.program, stages=min(2, len(package.layers))):
        fake, real = footprint(stage), footprint(stage, lambda spec: stand_in(spec, generator))
        assert fake.weight_bytes == real.weight_bytes
        # mse_loss on real tensors keeps the memory of its summands behind the scalar.
        slack = 48 if name == "mlp" else 0
        assert fake.held_bytes <= real.held_bytes <= fake.held_bytes + slack
        assert fake.peak_bytes <= real.peak_bytes <= fake.peak_bytes + slack


def test_meter_counts_each_storage_until_it_is_freed() -> None:
    known = torch.zeros(100)
    with StorageMeter([known]) as meter:
        a = torch.zeros(10)
        view = a.view(2, 5)
        b = known + 1
        assert meter.bytes == 440
        del a, b
        assert meter.bytes == 40
        del view
    assert (meter.bytes, meter.peak_bytes) == (0, 440)


@pytest.mark.parametrize("checkpoint", ["never", "always"])
def test_needs_are_the_planners(checkpoint: str) -> None:
    optimizer = OptimizerSpec("sgd", 0.1, momentum=0.9)
    terms = Terms(optimizer, microbatches_per_update=6, checkpoint=checkpoint)
    needs = requirements(deep(), terms)
    spec = terms.job(needs.layers)
    table = LayerTable(needs.layers)
    for stage, lo, hi, tau in ((0, 0, 9, 3), (1, 9, 30, 1), (2, 30, len(needs.layers), 0)):
        again = checkpoint == "always"
        need = needs.need(lo, hi, stage=stage, stages=3, staleness=tau, recompute=again)
        assert need.memory.needed == stage_need_bytes(spec, table, stage, 3, lo, hi, tau)
        assert need.memory.optimizer == need.memory.weights
    assert needs.params == sum(t.numel() for t in deep().weights.values() if t.is_floating_point())
    assert sum(needs.need(n, n + 1).params for n in range(len(needs.layers))) == needs.params


def test_the_loss_layer_counts_what_its_backward_needs() -> None:
    last = Requirements(deep()).layers[-1]
    stage = split_program(deep().program, [len(deep().layers) - 1])[-1]
    found = footprint(stage)
    assert last.activation_bytes >= found.peak_bytes - found.held_bytes


def test_equal_blocks_are_one_group() -> None:
    report = deep().report()
    block = next(group for group in report.groups if group.repeats > 1)
    assert (block.repeats, block.length, block.name) == (6, 6, "blocks.0–5")
    marks = signatures(deep().program)
    assert marks[block.lo : block.lo + 6] == marks[block.lo + 6 : block.lo + 12]
    assert len(set(marks[block.lo : block.lo + 6])) >= 5
    edges = [(group.lo, group.hi) for group in report.groups]
    assert [lo for lo, _ in edges] == [0, *(hi for _, hi in edges[:-1])]
    assert edges[-1][1] == len(report.layers)


def test_bf16_shrinks_activations_only() -> None:
    tokens = torch.zeros(64, 8, dtype=torch.long)
    package = capture_without_weights(
        CharGpt(width=32), (tokens,), loss=flat_cross_entropy, example_labels=(tokens,)
    )
    full, half = (Requirements(package, Terms(precision=p)) for p in ("fp32", "bf16"))
    assert half.whole.memory.weights == full.whole.memory.weights
    assert half.whole.memory.activations < 0.8 * full.whole.memory.activations
    assert [layer.out_bytes for layer in half.layers] == [layer.out_bytes for layer in full.layers]
    assert package.report(Terms(precision="bf16"), stages=2).stages[0].need.peak_bytes > 0
    with pytest.raises(ConfigError, match="int4"):
        Requirements(deep(), Terms(precision="int4"))


def test_split_is_even_for_equal_peers_and_gives_a_fast_one_more() -> None:
    stages = split_program(deep().program, stages=3)
    work = [stage.cost.flops for stage in stages]
    assert max(work) <= 1.2 * sum(work) / 3
    fast, slow = split_program(deep().program, peers=[a_peer("fast", flops=3e10), a_peer("slow", flops=1e10)])
    assert 2 < fast.cost.flops / slow.cost.flops < 4
    assert (fast.lo, slow.hi, fast.hi) == (0, len(deep().layers), slow.lo)


def test_split_respects_memory_and_says_what_is_missing() -> None:
    needs = Requirements(deep())
    even = needs.need(0, len(needs.layers) // 2, stages=2, staleness=1).memory.needed
    little = (even - 315 * MB) // 3 + 315 * MB
    small, large = a_peer("small", memory_bytes=little), a_peer("large", memory_bytes=1 << 34)
    draft = fit(needs, [small, large])
    lo, hi = draft.ranges[0]
    found = needs.need(lo, hi, stages=2, staleness=draft.staleness[0], recompute=draft.recompute[0])
    assert found.memory.needed <= little
    assert hi < len(needs.layers) // 2
    with pytest.raises(PlanningError, match=r"offered are 2 MB, the model needs about \d+ MB"):
        split_program(deep().program, peers=[a_peer("a", memory_bytes=MB), a_peer("b", memory_bytes=MB)])
    with pytest.raises(PlanningError, match="500 stages"):
        split_program(deep().program, stages=500)
    with pytest.raises(ValueError, match="exactly one"):
        split_program(deep().program, [2], stages=2)


def test_a_report_puts_peers_in_the_order_that_is_best() -> None:
    needs = Requirements(deep())
    room = needs.whole.memory.needed
    tiny = needs.need(len(needs.layers) - 1, len(needs.layers)).memory.needed + 40_000
    report = deep().report(peers=[a_peer("tiny", memory_bytes=tiny), a_peer("roomy", memory_bytes=room)])
    assert sorted(stage.peer for stage in report.stages) == ["roomy", "tiny"]
    for stage in report.stages:
        assert stage.offered_bytes is not None
        assert stage.need.memory.needed <= stage.offered_bytes
    document = report.as_dict()
    assert document["stages"][0]["memory_bytes"]["tensors"] == report.stages[0].need.memory.tensors
    assert document["checked_against_eager"] is True


def test_measured_layers_keep_the_sum_and_measure_one_of_a_kind() -> None:
    layers = measured_layers(deep().program)
    assert sum(layer.flops for layer in layers) == pytest.approx(sum(c.flops for c in deep().layers))
    marks = signatures(deep().program)
    by_kind = {mark: layer.flops for mark, layer in zip(marks, layers, strict=True)}
    assert all(by_kind[mark] == layer.flops > 0 for mark, layer in zip(marks, layers, strict=True))
    assert len(split_program(deep().program, stages=2, layers=layers)) == 2


def test_a_report_says_which_weights_stages_share() -> None:
    report = captured("gpt_tied").report(stages=3)
    names = "tokens.weight = head.weight"
    assert [stage.need.carried for stage in report.stages] == [(names,), (names,), ()]
    size = 20 * 16 * 4
    assert [stage["carried_bytes"] for stage in report.as_dict()["stages"]] == [size, size, 0]
    # τ = 2, 2, 0 with m = 4: two versions and a gradient, on the last stage one and a gradient.
    assert [stage.need.memory.carried for stage in report.stages] == [3 * size, 3 * size, 2 * size]
    assert report.whole.memory.carried == 0
    picture = svg_of(report, "gpt")
    assert picture.count(f"of these 1 kB {names}</title>") == 2
    text = StringIO()
    print_report(report, "gpt", Console(width=160, file=text))
    assert f"shared weights: {names}" in text.getvalue()


def test_the_picture_is_whole_and_escapes_names() -> None:
    report = deep().report(peers=[a_peer("<b>", memory_bytes=1 << 33), *equal_peers(2)])
    root = ElementTree.fromstring(svg_of(report, "a <model> & more"))
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a <model> & more: 3 stages" in texts
    assert any("<b>" in text for text in texts)
    titles = list(root.iter("{http://www.w3.org/2000/svg}title"))
    assert len(titles) >= len(report.layers)
