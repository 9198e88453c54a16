"""The examples that `make examples` trains: each can be captured and cut, and is judged by its loss."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ravnest_p2p.client.prepare import prepare
from ravnest_p2p.model import read_program, split_program

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("examples_run", EXAMPLES / "run.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.mark.parametrize("name", ["gpt_sorter", "resnet50", "bert", "gpt2"])
def test_an_example_becomes_a_job_of_two_stages_or_more(
    runner: ModuleType, name: str, tmp_path: Path
) -> None:
    assert name in runner.NAMES
    if name in ("bert", "gpt2"):
        pytest.importorskip("transformers")
    example = runner.load(name)
    request = example.job()
    prepared, program = prepare(request, tmp_path, lambda _: None)
    assert request.stages >= 2
    assert len(split_program(read_program(prepared.blobs[prepared.spec.program]), stages=request.stages)) > 1
    first, second = example.build_model(), example.build_model()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert {leaf.name for leaf in program.params} <= first.state_dict().keys()


def test_only_a_loss_that_falls_across_stages_counts(runner: ModuleType) -> None:
    assert runner.failure(4.0, 1.0, 2) == ""
    assert "one stage" in runner.failure(4.0, 1.0, 1)
    for end in (4.0, 3.9, float("nan"), float("inf")):
        assert "did not fall" in runner.failure(4.0, end, 2)


def test_the_text_is_the_same_each_time(runner: ModuleType) -> None:
    docstrings = runner.load("gpt2").windows.__globals__
    rows = docstrings["windows"](16, 5000)
    assert rows.shape == (312, 16)
    assert docstrings["written"](rows[0]) == docstrings["text"](5000)[:16]
