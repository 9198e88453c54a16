"""Architectures of the zoo that no other test trains, odd models and their verdicts, checked operations."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import model_zoo
from benchmarks.sections import architectures, odd
from benchmarks.zoo import Case
from benchmarks.zoo.stepping import difference, train_stages
from ravnest_p2p.core.errors import CaptureError, PackageError
from ravnest_p2p.model import Package, Program, capture
from ravnest_p2p.model.checked import CHECKED_OPS

FROM_TRANSFORMERS = ["llama", "t5"]


@pytest.mark.parametrize("name", ["lstm", "convnext", "unet", "tied_autoencoder", *FROM_TRANSFORMERS])
def test_architecture_is_captured_and_cut_to_the_last_bit(name: str) -> None:
    if name in FROM_TRANSFORMERS and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    row = architectures.check(name)
    assert row["captured"] == "identical"
    assert row["stages"] == {"2": "identical", "3": "identical", "4": "identical"}


RIGHT = [
    "boolean_mask_assignment",
    "bfloat16_inside",
    "checkpointed",
    "einsum",
    "gradient_penalty",
    "gru_cell",
    "gru_two_layers",
    "in_place_chain",
    "instance_norm_tracking",
    "lazy_mask_cache",
    "loss_with_parameters",
    "lstm_bidirectional_three_layers",
    "multihead_attention_weights",
    "spectral_norm",
    "torch_random",
    "vae_normal",
    "weight_norm",
    "writes_its_input",
]
REFUSED = {
    "backward_hook": r"`first` \(Linear\): a backward hook",
    "boolean_mask": "a shape depends on tensor values.*torch.where",
    "buffer_assigned": r"'average'.*self.average.copy_",
    "checkpointed_reentrant": "use_reentrant=False",
    "clipping_function": "custom autograd.Function _ClippedGradient",
    "complex_rotary": "complex numbers cannot travel.*cos and sin",
    "data_dependent_loop": "a Python `if`, loop or assert.*`while h.norm",
    "embedding_max_norm": r"`table` \(Embedding\): max_norm writes",
    "in_place_on_piece": "a piece of a split tensor",
    "item": "read as a Python number",
    "late_python_counter": "'count' changes in forward",
    "lazy_linear": "`module`: a lazy module has no weights",
    "loss_over_own_buffer": "the loss reads '1.running_var'",
    "lstm_packed": "packed sequences.*pad",
    "lstm_projected": "proj_size=0",
    "moving_average_teacher": "writes to the parameter 'teacher.weight'",
    "numpy_random": "Python's random or from numpy",
    "parameter_hook": "the hook on parameter 'first.weight'",
    "switches_itself_to_eval": "'training' changes",
    "tensor_hook": "gradient hook on a tensor",
    "weight_norm_old": "parametrizations.weight_norm",
}


@pytest.mark.parametrize("name", RIGHT)
def test_odd_model_is_captured_right(name: str) -> None:
    assert odd.verdict(name) == {"verdict": "right", "message": ""}


@pytest.mark.parametrize("name", REFUSED)
def test_odd_model_is_refused_with_its_cause(name: str) -> None:
    row = odd.verdict(name)
    assert row["verdict"] == "refused"
    assert re.search(REFUSED[name], row["message"], re.DOTALL), row["message"]


def test_a_model_that_fails_by_itself_is_told_from_one_that_cannot_travel() -> None:
    with pytest.raises(CaptureError, match=r"`1` \(Linear\): it fails on the examples.*shapes"):
        capture(
            nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 2)),
            (torch.randn(3, 4),),
            loss=nn.MSELoss(),
            example_labels=(torch.randn(3, 2),),
        )


def _recurrent(**wrong: torch.Tensor) -> tuple[torch.Tensor, ...]:
    tensors = {
        "x": torch.randn(5, 3, 4),
        "h": torch.zeros(1, 3, 6),
        "c": torch.zeros(1, 3, 6),
        "w_ih": torch.randn(24, 4),
        "w_hh": torch.randn(24, 6),
        "b_ih": torch.randn(24),
        "b_hh": torch.randn(24),
    } | wrong
    x, h, c, *weights = tensors.values()
    return CHECKED_OPS["ravnest.lstm_layer.default"](x, h, c, weights, False, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": torch.randn(5, 3, 9)},
        {"x": torch.randn(5, 3)},
        {"x": torch.randn(0, 3, 4)},
        {"h": torch.zeros(1, 3, 600)},
        {"h": torch.zeros(2, 3, 6)},
        {"c": torch.zeros(1, 2, 6)},
        {"w_hh": torch.randn(24, 600)},
        {"w_ih": torch.randn(8, 4)},
        {"b_hh": torch.randn(6)},
        {"b_ih": torch.randn(24).double()},
    ],
)
def test_recurrent_layers_refuse_sizes_that_would_corrupt_memory(wrong: dict[str, torch.Tensor]) -> None:
    assert _recurrent()[0].shape == (5, 3, 6)
    with pytest.raises(ValueError, match="lstm"):
        _recurrent(**wrong)


def test_a_hostile_recurrent_node_is_refused_before_it_runs() -> None:
    layer = nn.LSTM(4, 6)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    example = torch.randn(5, 3, 4), torch.randn(5, 3, 6)
    package = capture(Model(), example[:1], loss=nn.MSELoss(), example_labels=example[1:])
    document = json.loads(package.program.to_json())
    (hidden,) = [leaf for leaf in document["params"] if leaf[0] == "lstm.weight_hh_l0"]
    hidden[1] = [24, 600]
    with pytest.raises(PackageError, match="lstm: a tensor of shape"):
        Program.from_json(json.dumps(document).encode())


class NormedHeads(nn.Module):
    """Scales each head before its transposition, whose gradient then lies otherwise in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
        self.scale, self.shift = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(4, 1, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.scale * self.first(x).view(4, 16, 4, 16)
        heads = (heads.transpose(1, 2) + self.shift).softmax(-1)
        return self.last(heads.transpose(1, 2).reshape(4, 16, 64).square())


def test_no_cut_changes_the_last_bit_of_a_sum_over_heads() -> None:
    torch.manual_seed(0)
    case = Case(NormedHeads(), (torch.randn(4, 16, 64),), (torch.randn(4, 16, 64),), nn.MSELoss())
    package = capture(case.model, case.inputs, loss=case.loss, example_labels=case.labels)
    whole = train_stages(case, package, [], 1)
    every_cut = list(range(1, len(package.layers)))
    assert difference(train_stages(case, package, every_cut, 1), whole) == ""
    bounds = package.program.cut_map.bounds()
    careless = Package(replace(package.program, layer_bounds=bounds), package.weights)
    every_cut = list(range(1, len(bounds)))
    assert "scale" in difference(train_stages(case, careless, every_cut, 1), whole)


def test_the_benchmark_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    status = model_zoo.main(["--json", "--quick", "--section", "load", "--only", "cnn"])
    report = json.loads(capsys.readouterr().out)
    assert status == 0
    assert report["benchmark"] == "model_zoo"
    assert report["results"]["load"]["cnn"]["nodes"] > 0
    assert all(goal["holds"] for goal in report["goals"])
