"""A parameter of several stages: its owner sends it, its gradients come back, no cut changes the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.zoo import Case
from benchmarks.zoo.stepping import difference, train_stages
from ravnest_p2p.client.result import state_dict
from ravnest_p2p.core.errors import PackageError
from ravnest_p2p.core.rings import segments
from ravnest_p2p.core.types import ClusterPlan, OptimizerSpec, PeerId, StageAssignment
from ravnest_p2p.model import Package, StageComputation, capture, split_program, stage_program
from ravnest_p2p.model.mixed import MixedComputation, crossing_params
from ravnest_p2p.training import StageTrainer, averaging, load_pieces
from tests.unit.model_zoo import CharGpt, flat_cross_entropy
from tests.unit.pieces import save_piece
from tests.unit.training_models import Pipeline, copies

WORDS, WIDTH = 12, 8


class Shared(nn.Module):
    """An embedding that is read by three operations, a matrix by two, and a frozen one by two."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.first, self.inner, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.scale = nn.Parameter(torch.randn(WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.words(x) * self.scale)
        h = torch.tanh(self.inner(h)) + self.words(x.flip(1))
        h = torch.tanh(F.linear(self.last(h * self.scale), self.inner.weight.t()))
        return F.linear(h, self.words.weight)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(WORDS, (3, 5), generator=generator) for _ in range(2))  # type: ignore[return-value]


@cache
def shared() -> tuple[Shared, Package]:
    torch.manual_seed(0)
    model = Shared()
    x, y = batch(0)
    return model, capture(model, (x,), loss=flat_cross_entropy, example_labels=(y,))


def case_of(model: nn.Module) -> Case:
    x, y = batch(0)
    return Case(model, (x,), (y,), flat_cross_entropy)


def trainers_of(
    package: Package,
    cuts: Sequence[int],
    m: int,
    taus: Sequence[int],
    spec: OptimizerSpec,
    kind: type = StageComputation,
    halve: bool = True,
) -> list[StageTrainer]:
    return [
        StageTrainer(
            kind(stage),
            copies({name: package.weights[name] for name in stage.params}),
            copies({name: package.weights[name] for name in stage.buffers}),
            optimizer=spec,
            microbatches_per_update=m,
            staleness=tau,
            is_last=stage.is_last,
            halve=halve,
        )
        for stage, tau in zip(split_program(package.program, cuts), taus, strict=True)
    ]


def fields(count: int) -> list[Mapping[str, Tensor]]:
    return [{"x0": x, "y0": y} for x, y in map(batch, range(count))]


def weights_of(trainers: Sequence[StageTrainer]) -> dict[str, Tensor]:
    found = [item for trainer in trainers for item in trainer.params.items()]
    assert len({name for name, _ in found}) == len(found), "a parameter has two owners"
    return dict(found)


def cut_after(package: Package, name: str) -> int:
    """The first layer bound behind the one that owns the parameter."""
    layers = range(len(package.layers))
    return next(n for n in layers if name in stage_program(package.program, n, n + 1).params) + 1


def test_the_first_stage_that_uses_a_parameter_owns_it_and_the_others_receive_it() -> None:
    _, package = shared()
    stages = split_program(package.program, range(1, len(package.layers)))
    owners = [stage.params for stage in stages]
    assert "words.weight" in owners[0]
    assert sum("words.weight" in params for params in owners) == 1
    assert sum("inner.weight" in params for params in owners) == 1
    assert all(stage.received_params for stage in stages[1:])
    assert all("scale" not in stage.params for stage in stages)
    assert sum("scale" in stage.buffers for stage in stages) == 2
    carried = package.program.cut_map.carried_bytes
    assert max(carried) == (WORDS * WIDTH + WIDTH * WIDTH) * 4
    held = sum(layer.param_bytes for layer in package.layers)
    assert held == sum(t.nbytes for t in package.weights.values()) + WIDTH * 4


def test_what_crosses_some_cut_is_known_without_trying_all_cuts() -> None:
    program = shared()[1].program
    leaves = range(len(program.leaves))
    tried = {s for bound in program.layer_bounds[:-1] for s in program.cut_map.crossing(bound) if s in leaves}
    assert {program.leaves[slot].name for slot in tried} == {"words.weight", "inner.weight"}
    assert crossing_params(program) == tried


def test_every_cut_gives_the_bits_of_the_whole() -> None:
    model, package = shared()
    case, layers = case_of(model), len(package.layers)
    assert layers >= 5
    whole = train_stages(case, package, [], 2)
    for cuts in [list(range(1, layers)), *([at] for at in range(1, layers))]:
        assert difference(train_stages(case, package, cuts, 2), whole) == "", cuts


@pytest.mark.parametrize("kind", [StageComputation, MixedComputation])
def test_training_does_not_depend_on_the_cut(kind: type) -> None:
    _, package = shared()
    layers, spec = len(package.layers), OptimizerSpec("adamw", 1e-2, weight_decay=0.1)
    states = []
    for cuts in [[], *([at] for at in range(1, layers)), list(range(1, layers))]:
        taus = [0] * (len(cuts) + 1)
        trainers = trainers_of(package, cuts, 3, taus, spec, kind)
        losses = Pipeline(trainers, fields(12), taus, 3).run().losses
        states.append((losses, weights_of(trainers)))
    for losses, weights in states[1:]:
        assert losses == states[0][0]
        assert weights.keys() == states[0][1].keys()
        assert all(torch.equal(weights[name], value) for name, value in states[0][1].items())
    assert not torch.equal(states[0][1]["words.weight"], package.weights["words.weight"])


class Reference:
    """Asynchronous SGD on two stages, in eager PyTorch: what the tied weight is, is decided by its owner."""

    def __init__(self, model: nn.Module, owned: set[str], m: int, tau: int, rate: float) -> None:
        self._model, self._owned, self._m, self._tau, self._rate = model, owned, m, tau, rate
        self.live = {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=True)}
        self._early: dict[int, dict[str, Tensor]] = {}

    def run(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        sums: dict[int, dict[str, Tensor]] = {}
        for i, data in enumerate(batches):
            u, k = divmod(i, self._m)
            early = u > 0 and k < self._tau
            used = {n: self._early[u][n] if early and n in self._owned else w for n, w in self.live.items()}
            used = {n: w.detach().requires_grad_() for n, w in used.items()}
            output = functional_call(self._model, used, (data["x0"],), tie_weights=True)
            grads = torch.autograd.grad(flat_cross_entropy(output, data["y0"]) / self._m, list(used.values()))
            total = sums.setdefault(u, {n: torch.zeros_like(w) for n, w in used.items()})
            for name, gradient in zip(used, grads, strict=True):
                total[name] += gradient
            done = k + 1
            if done == self._m - self._tau:
                ahead = self._rate * self._m / done
                self._early[u + 1] = {n: w - ahead * sums[u][n] for n, w in self.live.items()}
            if done == self._m:
                self.live = {n: w - self._rate * sums[u][n] for n, w in self.live.items()}


@pytest.mark.parametrize(("m", "tau"), [(4, 1), (4, 2), (3, 2), (2, 0)])
def test_a_tied_gpt_trains_asynchronously_as_eager_pytorch_would(m: int, tau: int) -> None:
    torch.manual_seed(1)
    model = CharGpt(tied=True, depth=1)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(20, (3, 8), generator=generator) for _ in range(4 * m)]
    data = [{"x0": x, "y0": x.roll(-1, 1)} for x in rows]
    package = capture(model, (rows[0],), loss=flat_cross_entropy, example_labels=(rows[0],))
    cut = len(package.layers) // 2
    trainers = trainers_of(package, [cut], m, [tau, 0], OptimizerSpec("sgd", 0.1), halve=False)
    assert "tokens.weight" in trainers[0].params
    Pipeline(trainers, data, [tau, 0], m).run()
    reference = Reference(model, set(trainers[0].params), m, tau, 0.1)
    reference.run(data)
    found = weights_of(trainers)
    assert found.keys() == reference.live.keys()
    for name, weight in reference.live.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6, msg=name)


def owner(m: int, tau: int) -> StageTrainer:
    _, package = shared()
    at = cut_after(package, "words.weight")
    return trainers_of(package, [at], m, [tau, 0], OptimizerSpec("sgd", 0.5))[0]


def there_and_back(trainer: StageTrainer, i: int, speculative: bool = False) -> Tensor:
    """The carried embedding as it was sent, after a backward that moves it."""
    sent = trainer.forward(i, (), fields(1)[0], i, speculative=speculative).outputs
    trainer.backward(i, [torch.ones_like(tensor) for tensor in sent])
    return next(tensor for tensor in sent if tensor.shape == (WORDS, WIDTH))


def test_what_was_sent_stays_when_the_weight_is_stepped_and_averaged() -> None:
    trainer = owner(1, 0)
    sent = there_and_back(trainer, 0)
    bits = sent.clone()
    trainer.step()
    assert not torch.equal(trainer.params["words.weight"], bits)
    assert torch.equal(sent, bits)
    stepped = there_and_back(trainer, 1)
    bits = stepped.clone()
    trainer.step()
    names = ["words.weight"]
    flat = averaging.gather(trainer.params, trainer.buffers, names) + 1.0
    averaging.scatter(flat, trainer.params, trainer.buffers, names)
    assert torch.equal(stepped, bits)
    assert torch.equal(there_and_back(trainer, 2), trainer.params["words.weight"].detach())


def test_one_version_is_copied_once() -> None:
    trainer = owner(4, 2)
    sent = [there_and_back(trainer, i) for i in range(2)]
    trainer.speculate()
    sent += [there_and_back(trainer, i) for i in (2, 3)]
    trainer.step()
    sent += [there_and_back(trainer, i, speculative=True) for i in (4, 5)]
    sent += [there_and_back(trainer, i) for i in (6,)]
    places = [tensor.data_ptr() for tensor in sent]
    assert len(set(places[:4])) == len(set(places[4:6])) == 1
    assert len(set(places)) == 3
    live = trainer.params["words.weight"]
    assert live.data_ptr() not in places
    assert torch.equal(sent[-1], live.detach())


def test_a_stage_that_owns_nothing_trains_is_saved_and_resumes(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False))
    model[1].weight = model[0].weight
    x, y = batch(0)
    package = capture(model, (x,), loss=flat_cross_entropy, example_labels=(y,))
    spec = OptimizerSpec("adamw", 1e-2, clip_norm=1.0)
    trainers = trainers_of(package, [1], 2, [1, 0], spec)
    assert list(trainers[1].params) == []
    Pipeline(trainers, fields(4), [1, 0], 2).run()
    paths = []
    for number, trainer in enumerate(trainers):
        paths.append(tmp_path / f"{number}")
        state = trainer.optimizer_state()
        save_piece(paths[-1], trainer.params, trainer.buffers, state, version=2, batches_done=2)
    assert load_pieces(paths[1:], {}, {}).version == 2
    found = state_dict(package.program, paths, [])
    assert found.keys() == {"0.weight", "1.weight"}
    assert found["0.weight"] is found["1.weight"]
    assert torch.equal(found["0.weight"], trainers[0].params["0.weight"])


def test_clusters_that_are_cut_elsewhere_average_every_parameter_once() -> None:
    _, package = shared()
    layers = len(package.layers)

    def cluster(*cuts: int) -> ClusterPlan:
        parts = pairwise([0, *cuts, layers])
        return ClusterPlan(tuple(StageAssignment(PeerId(f"{lo}"), lo, hi, 0) for lo, hi in parts), 1)

    clusters = cluster(2, 4), cluster(1, 3), cluster(layers - 1)
    names: list[str] = []
    for segment in segments(clusters):
        owned = stage_program(package.program, segment.lo, segment.hi).params
        names += owned
        for at in segment.members:
            place = clusters[at.cluster].stages[at.stage]
            assert set(owned) <= set(stage_program(package.program, place.lo, place.hi).params)
    assert sorted(names) == sorted(leaf.name for leaf in package.program.params)


def test_a_view_of_a_live_weight_is_copied_too() -> None:
    class Sliced:
        def forward(self, params, buffers, received, data, seed):  # type: ignore[no-untyped-def]
            return (params["table"][:2] * 1.0, params["table"][2:])

    trainer = StageTrainer(
        Sliced(), {"table": torch.randn(4, 3)}, {}, optimizer=OptimizerSpec("sgd", 0.5),
        microbatches_per_update=1, staleness=0, is_last=False,
    )  # fmt: skip
    sent = trainer.forward(0, (), {}, 0, speculative=False).outputs
    bits = [tensor.clone() for tensor in sent]
    trainer.backward(0, [torch.ones(2, 3)] * 2)
    trainer.step()
    assert all(torch.equal(a, b) for a, b in zip(sent, bits, strict=True))


def test_a_parameter_of_many_uses_and_a_changing_buffer_stay_where_they_are() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(WIDTH, WIDTH)
            self.norm = nn.BatchNorm1d(WIDTH)
            self.turns = 5

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.turns):
                x = torch.tanh(self.cell(x))
            return x

    class Twice(Loop):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(torch.tanh(self.cell(self.norm(x))))

    example = torch.randn(4, WIDTH), torch.randn(4, WIDTH)
    for model, name in ((Loop(), "cell.weight"), (Twice(), "norm.running_mean")):
        package = capture(model, example[:1], loss=nn.MSELoss(), example_labels=example[1:])
        assert name in package.program.cut_map.holding()
        with pytest.raises(PackageError, match=r"keeps them on one stage \(untie"):
            split_program(package.program, [1])
