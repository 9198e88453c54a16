"""Any cut trains the same model, and no mutation of a program gets past the reader unnoticed."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ravnest_p2p.core.errors import PackageError
from ravnest_p2p.model import Program, split, split_program
from ravnest_p2p.model.eval_stages import eval_stages
from ravnest_p2p.model.evaluation import parse_evaluation
from tests.unit.test_model_stages import Result, assert_same, captured, fields, run_stages

NAMES = ("cnn", "residual", "gpt", "gpt_manual")
SETTINGS = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@cache
def whole(name: str, seed: int) -> Result:
    case, package = captured(name)
    return run_stages(split_program(package.program, []), package.weights, fields(case), seed)


@SETTINGS
@given(data=st.data(), name=st.sampled_from(NAMES), seed=st.integers(0, 3))
def test_any_cut_trains_the_same_model(data: st.DataObject, name: str, seed: int) -> None:
    case, package = captured(name)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(package.layers) - 1), max_size=6)))
    stages = split_program(package.program, cuts)
    assert [s.sends for s in stages[:-1]] == [s.receives for s in stages[1:]]
    assert sorted(n for s in stages for n in s.params) == sorted(leaf.name for leaf in package.program.params)
    assert_same(run_stages(stages, package.weights, fields(case), seed), whole(name, seed))


def _changed(data: st.DataObject, written: bytes, junk: Any) -> bytes:
    """The document with junk put in, or in the place of, one of its values."""
    document = json.loads(written)
    path = data.draw(st.sampled_from(_places(document)))
    place = document
    for key in path[:-1]:
        place = place[key]
    if data.draw(st.booleans()) and isinstance(place, list):
        place.insert(path[-1], junk)
    else:
        place[path[-1]] = junk
    return json.dumps(document).encode()


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += _places(item, (*path, key))
    return found


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-4, 40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.just({"slot": 0}),
    st.integers(-2, 60).map(lambda slot: {"slot": slot}),
    st.lists(st.integers(-2, 9), max_size=5),
    st.just({}),
)


@settings(SETTINGS, max_examples=300)
@given(data=st.data(), name=st.sampled_from(("cnn", "gpt_manual")), junk=JUNK)
def test_a_changed_program_is_refused_or_sound(data: st.DataObject, name: str, junk: Any) -> None:
    _, package = captured(name)
    document = _changed(data, package.program.to_json(), junk)
    try:
        program = Program.from_json(document)
    except PackageError:
        return
    assert Program.from_json(program.to_json()) == program
    assert program.analysis.total_bytes < 1 << 30
    assert len(program.layers) == len(program.layer_bounds)


@SETTINGS
@given(data=st.data(), name=st.sampled_from((*NAMES, "gpt_tied")))
def test_any_cut_evaluates_the_same_model(data: st.DataObject, name: str) -> None:
    case, package = captured(name)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(package.layers) - 1), max_size=6)))
    stages = split(package, cuts)
    carried: tuple[Tensor, ...] = ()
    for stage in stages:
        owned = {*stage.program.params, *stage.program.mutable_buffers}
        assert set(stage.evaluation.params) <= owned
        carried = stage.evaluate([tensor.clone() for tensor in carried], fields(case))
    expected = package.evaluate(fields(case))
    assert torch.equal(carried[0], expected.loss)
    assert torch.equal(carried[1], expected.outputs["output"])


@settings(SETTINGS, max_examples=200)
@given(data=st.data(), name=st.sampled_from(("cnn", "gpt_manual")), junk=JUNK)
def test_a_changed_evaluation_is_refused_or_sound(data: st.DataObject, name: str, junk: Any) -> None:
    _, package = captured(name)
    document = _changed(data, package.evaluation.to_json(), junk)
    try:
        evaluation = parse_evaluation(document, package.program)
    except PackageError:
        return
    assert parse_evaluation(evaluation.to_json(), package.program) == evaluation
    assert not evaluation.mutated_slots
    assert evaluation.inputs == package.program.inputs
    assert evaluation.analysis.specs[evaluation.loss].shape == ()
    parts = eval_stages(evaluation, split_program(package.program, stages=2))
    assert parts[0].sends == parts[1].receives
