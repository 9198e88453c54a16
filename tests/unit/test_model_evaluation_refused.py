"""Evaluations that cannot be taken, or are a stranger's, are refused by name; training goes on without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from ravnest_p2p.cli.inspect_view import print_report
from ravnest_p2p.core.errors import BlobError, CaptureError, ConfigError, PackageError
from ravnest_p2p.model import (
    Package,
    capture,
    capture_without_weights,
    split,
)
from tests.unit.model_zoo import make
from tests.unit.test_model_evaluation import Base, X, Y, assert_alike, take, train
from tests.unit.test_model_stages import captured, fields


class Counting(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.last(self.first(x)) * self.seen


class Branching(Base):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training and x.sum() > 0:
            return self.last(x)
        return self.last(self.first(x))


class Failing(Base):
    def forward(self, x: Tensor) -> Any:
        y = self.last(self.first(x))
        return y if self.training else {"y": y}


class Remembering(Base):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.calls += 1
        return self.last(self.first(x)) * (1 + self.calls)


class Strange(Base):
    def forward(self, x: Tensor) -> Any:
        y = self.last(self.first(x))
        return (y if self.training else torch.view_as_complex(y)), y


@pytest.mark.parametrize(
    ("model", "loss", "says"),
    [
        (Counting, F.mse_loss, "in eval mode forward\\(\\) writes to the buffer 'seen'"),
        (Branching, F.mse_loss, "a Python `if`"),
        (Failing, F.mse_loss, "in eval mode the model: it fails on the examples"),
        (Remembering, F.mse_loss, "'calls' changes in forward"),
        (Strange, lambda out, y: F.mse_loss(out[1], y), "complex"),
    ],
)
def test_a_model_that_cannot_be_evaluated_can_still_be_trained(
    model: type[nn.Module], loss: Any, says: str
) -> None:
    package = take(model(), loss)
    assert package.evaluation is None
    with pytest.raises(CaptureError, match=f"cannot be evaluated: .*{says}"):
        package.evaluate({"x0": X, "y0": Y})
    (stage,) = split(package, [])
    train([stage], {"x0": X, "y0": Y})
    with pytest.raises(CaptureError, match="without its evaluation"):
        stage.evaluate((), {"x0": X, "y0": Y})
    console = Console(record=True, width=200)
    print_report(package.report(), "m", console)
    assert "no evaluation: " in console.export_text()
    assert package.report().as_dict()["evaluation_refusal"] == package.evaluation_refusal


def test_an_evaluation_is_left_out_where_it_is_not_asked_for() -> None:
    case = make("mlp")
    arguments: dict[str, Any] = {"loss": case.loss, "example_labels": case.labels}
    package = capture(case.model, case.inputs, **arguments, evaluation=False)
    shapes = capture_without_weights(case.model, case.inputs, **arguments)
    assert package.evaluation is None
    assert shapes.evaluation is None
    with pytest.raises(CaptureError, match="shapes alone"):
        shapes.evaluate(fields(case))
    with pytest.raises(CaptureError, match="without weights"):
        split(shapes, [1])


def test_wrong_weights_and_data_are_refused_by_name() -> None:
    case, package = captured("mlp")
    data = fields(case)
    with pytest.raises(ConfigError, match=r"0\.weight"):
        package.evaluate(data, {"0.weight": torch.zeros(3)})
    with pytest.raises(BlobError, match="y0 is missing"):
        package.evaluate({"x0": data["x0"]})
    with pytest.raises(BlobError, match="x0"):
        package.evaluate({**data, "x0": data["x0"][:2]})


def test_packages_keep_their_evaluation_on_disk_and_old_ones_have_none(tmp_path: Path) -> None:
    case, package = captured("cnn")
    package.save(tmp_path / "new")
    read = Package.load(tmp_path / "new")
    assert read.evaluation == package.evaluation
    assert read.evaluation.to_json() == package.evaluation.to_json()
    assert_alike(read.evaluate(fields(case)), package.evaluate(fields(case)))
    read.save(tmp_path / "again")
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(
        p.name for p in (tmp_path / "new").iterdir()
    )
    (tmp_path / "new" / "evaluation.json").unlink()
    old = Package.load(tmp_path / "new")
    assert old.evaluation is None
    with pytest.raises(CaptureError, match="saved without"):
        old.evaluate(fields(case))


@pytest.mark.parametrize("change", ["pickle", "link", "other", "state"])
def test_a_hostile_evaluation_makes_the_folder_no_package(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "saved"
    captured("cnn")[1].save(folder)
    path = folder / "evaluation.json"
    document = json.loads(path.read_text())
    if change == "pickle":
        path.write_bytes(b"\x80\x04cos\nsystem\n(S'x'\ntR.")
    elif change == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif change == "other":
        path.write_bytes(captured("mlp")[1].evaluation.to_json())
    else:
        document["params"].pop()
        path.write_text(json.dumps(document))
    with pytest.raises(PackageError):
        Package.load(folder)
