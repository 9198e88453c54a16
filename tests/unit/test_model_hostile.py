"""Programs and weights from a stranger: every lie is refused by name, quickly, with nothing allocated."""

from __future__ import annotations

import copy
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ravnest_p2p.core.errors import PackageError
from ravnest_p2p.model import Limits, Package, Program, TensorSpec, load_tensors, ops, split_program
from ravnest_p2p.model.mixed import MixedComputation
from tests.unit.test_model_stages import captured


def honest(name: str = "cnn") -> Package:
    return captured(name)[1]


def document(name: str = "cnn") -> dict[str, Any]:
    return json.loads(honest(name).program.to_json())


def refused(doc: Any, says: str, limits: Limits | None = None) -> None:
    data = doc if isinstance(doc, bytes) else json.dumps(doc).encode()
    started = time.monotonic()
    with pytest.raises(PackageError, match=says):
        Program.from_json(data, limits)
    assert time.monotonic() - started < 5.0


def test_an_honest_program_comes_back_equal() -> None:
    for name in ("cnn", "gpt_manual"):
        program = honest(name).program
        read = Program.from_json(program.to_json())
        assert read == program
        assert read.to_json() == program.to_json()
        assert read.layers == program.layers


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    keys = [int(k) if k.lstrip("-").isdecimal() else k for k in path.split("/")]

    def change(doc: dict[str, Any]) -> None:
        place: Any = doc
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


LIES = {
    "unknown operation": (_set("nodes/3/0", "aten.as_strided.default"), "not allowed"),
    "operation outside of aten": (_set("nodes/3/0", "os.system.default"), "not allowed"),
    "operation is no text": (_set("nodes/3/0", 7), "not a name"),
    "forward reference": (_set("nodes/0/1/0", {"slot": 30}), "reference"),
    "own result": (_set("nodes/0/1/0", {"slot": 18}), "reference"),
    "negative reference": (_set("nodes/0/1/0", {"slot": -1}), "reference"),
    "fractional reference": (_set("nodes/0/1/0", {"slot": 1.0}), "reference"),
    "truth as reference": (_set("nodes/0/1/0", {"slot": True}), "reference"),
    "unknown argument kind": (_set("nodes/0/1/0", {"device": "cuda"}), "unknown"),
    "number for a tensor": (_set("nodes/0/1/0", 3), "not a valid Tensor"),
    "text for a list": (_set("nodes/0/1/3", "same"), "not a valid List"),
    "unknown text": (_set("nodes/0/1/3", "/etc/passwd"), "not a valid"),
    "too many arguments": (_set("nodes/0/1", [None] * 20), "takes"),
    "too few arguments": (_set("nodes/0/1", []), "lacks argument"),
    "unknown keyword": (_set("nodes/0/2", {"out": {"slot": 0}}), "no argument"),
    "argument twice": (_set("nodes/0/2", {"input": {"slot": 0}}), "twice"),
    "huge integer": (_set("nodes/0/1/4", [2**60, 1]), "not a valid"),
    "wrong shape": (_set("nodes/0/3/0/0", [4, 9, 8, 8]), "differ"),
    "wrong dtype": (_set("nodes/0/3/0/1", "float64"), "differ"),
    "unknown dtype": (_set("nodes/0/3/0/1", "complex64"), "dtype"),
    "operation refuses": (_set("nodes/0/1/3", [1, 1, 1]), "node 0"),
    "missing result": (_set("nodes/0/3", []), "no slot"),
    "statistics in a parameter": (_set("nodes/2/1/3", {"slot": 3}), "not a buffer"),
    "write to a parameter": (_set("nodes/1/1/0", {"slot": 3}), "not a buffer"),
    "giant leaf": (_set("inputs/0/1", [10**6, 10**6]), "over the limit"),
    "overflowing leaf": (_set("inputs/0/1", [2**40, 2**40, 2**40]), "too large"),
    "negative size": (_set("inputs/0/1", [-4, 1, 8, 8]), "size"),
    "giant result": (_set("nodes/0/3/0/0", [10**6, 10**6]), "over the limit"),
    "high rank": (_set("inputs/0/1", [1] * 100), "over the limit"),
    "duplicate name": (_set("params/1/0", "conv1.weight"), "twice"),
    "malformed name": (_set("params/1/0", "a\nb"), "malformed"),
    "long name": (_set("params/1/0", "a" * 10_000), "malformed"),
    "foreign input": (_set("inputs/0/0", "conv"), "x0"),
    "integer parameter": (_set("params/0/2", "int64"), "floating"),
    "wrong kind": (_set("params/0/3", "buffer"), "kind"),
    "output is no loss": (_set("output", 3), "scalar loss"),
    "output out of range": (_set("output", 10**6), "output"),
    "bounds do not end": (_set("layers/-1", 3), "ascend"),
    "bounds out of range": (_set("layers/-1", 10**9), "bound"),
    "no layers": (_set("layers", []), "ascend"),
    "tied to nothing": (_set("tied", [["ghost", "head.weight"]]), "tied"),
    "transient nothing": (_set("transient", ["ghost"]), "transient"),
    "foreign format": (_set("format", "pickle"), "format"),
    "extra key": (_set("code", "print()"), "keys"),
    "nested arguments": (_set("nodes/0/1/3", [[[[[[1]]]]]]), "nested"),
    "long list": (_set("nodes/0/1/3", [1] * 100_000), "over the limit"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(lie: str) -> None:
    change, says = LIES[lie]
    doc = document()
    change(doc)
    refused(doc, says)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"format":NaN}',
        b"9" * 1_000_000,
        b'{"format":1,"format":2}',
        b"null",
        b"[]",
        b'{"format":"ravnest-program/1"}',
    ],
    ids=range(11),
)
def test_text_that_is_no_program_is_refused(text: bytes) -> None:
    refused(text, "program")


def test_every_truncation_is_refused() -> None:
    data = honest("mlp").program.to_json()
    for end in range(0, len(data), 7):
        refused(data[:end], "not valid JSON")


def test_limits_hold_before_the_work() -> None:
    doc = document()
    refused(doc, "bytes", Limits(json_bytes=100))
    refused(doc, "items", Limits(nodes=5))
    refused(doc, "items", Limits(leaves=5))
    refused(doc, "limit of 1000", Limits(tensor_bytes=1000))
    refused(doc, "together", Limits(total_bytes=5000))


def _appended(op: str, args: list[Any], outputs: list[Any], rounding: str = "") -> dict[str, Any]:
    doc = document("mlp")
    doc["nodes"].append([op, args, {"rounding_mode": rounding} if rounding else {}, outputs, False])
    doc["layers"][-1] += 1
    return doc


def test_bombs_are_refused_without_going_off() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    zero = {"slot": 0}
    refused(_appended("aten.arange.default", [10**14], [[[10**14], "int64"]]), "over the limit")
    refused(_appended("aten.expand.default", [zero, [2**40, 4, 8]], [[[4, 8], "float32"]]), "differ")
    refused(_appended("aten.zeros.default", [[10**9, 10**3]], [[[1], "float32"]]), "differ")
    refused(_appended("aten.div.Scalar_mode", [{"slot": 0}, 2], [[[4, 8], "int64"]], "trunc"), "not safe")
    wide = document("mlp")
    wide["buffers"] = []
    wide["nodes"] += [
        ["aten.arange.default", [10**9], {}, [[[10**9], "int64"]], False],
        ["aten.unbind.int", [{"slot": 16}], {}, [[[], "int64"]], False],
    ]
    wide["layers"][-1] += 2
    refused(wide, "pieces")
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 200_000


def test_a_long_program_is_read_in_bounded_time() -> None:
    doc = document("mlp")
    count = 2000
    doc["nodes"] += [["aten.relu.default", [{"slot": 0}], {}, [[[4, 8], "float32"]], False]] * count
    doc["layers"][-1] += count
    started = time.monotonic()
    Program.from_json(json.dumps(doc).encode())
    assert time.monotonic() - started < 10.0


def test_a_parameter_that_every_layer_shares_is_cut_in_bounded_time() -> None:
    doc = document("mlp")
    count, first = 4000, len(doc["nodes"])
    weight = len(doc["inputs"])
    shape = doc["params"][0][1]
    doc["nodes"] += [["aten.relu.default", [{"slot": weight}], {}, [[shape, "float32"]], False]] * count
    doc["layers"] = [first, *range(first + 1, first + count + 1)]
    started = time.monotonic()
    program = Program.from_json(json.dumps(doc).encode())
    stages = split_program(program, [1, count // 2])
    assert [doc["params"][0][0] in stage.params for stage in stages] == [True, False, False]
    assert [len(stage.received_params) for stage in stages] == [0, 1, 1]
    MixedComputation(stages[1])
    assert time.monotonic() - started < 10.0


def test_packages_survive_the_disk(tmp_path: Path) -> None:
    for name in ("cnn", "gpt_tied"):
        package = honest(name)
        package.save(tmp_path / name)
        read = Package.load(tmp_path / name)
        assert read.program == package.program
        assert read.weights.keys() == package.weights.keys()
        assert all(torch.equal(read.weights[n], t) for n, t in package.weights.items())


def test_weights_may_be_cut_into_files_and_read_in_part(tmp_path: Path) -> None:
    package = honest()
    program_path, _ = package.write(tmp_path)
    names = sorted(package.weights)
    parts = []
    for part, chosen in enumerate((names[:3], names[3:])):
        parts.append(tmp_path / f"{part}.safetensors")
        save_file({n: package.weights[n] for n in chosen}, parts[-1])
    assert Package.from_files(program_path, parts).weights.keys() == package.weights.keys()
    wanted = {"conv1.weight": TensorSpec((8, 1, 3, 3), "float32")}
    assert load_tensors(parts, wanted, partial=True).keys() == {"conv1.weight"}
    with pytest.raises(PackageError, match="twice"):
        Package.from_files(program_path, [*parts, parts[0]])


def test_infinite_weights_are_legal(tmp_path: Path) -> None:
    package = honest()
    weights = copy.deepcopy(package.weights)
    weights["conv1.weight"].fill_(float("nan"))
    Package(package.program, weights).save(tmp_path)
    assert Package.load(tmp_path).weights["conv1.weight"].isnan().all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("conv1.weight"), "lack 'conv1.weight'"),
        (lambda w: w.update(ghost=torch.zeros(1)), "'ghost'"),
        (lambda w: w.update({"conv1.bias": torch.zeros(9)}), "conv1.bias"),
        (lambda w: w.update({"conv1.bias": torch.zeros(8, dtype=torch.float64)}), "float64"),
        (lambda w: w.update({"conv1.bias": torch.zeros(8, dtype=torch.complex64)}), "conv1.bias|refused"),
    ],
    ids=["missing", "extra", "shape", "dtype", "foreign dtype"],
)
def test_wrong_weights_are_refused(
    change: Callable[[dict[str, torch.Tensor]], None], says: str, tmp_path: Path
) -> None:
    package = honest()
    weights = dict(package.weights)
    program_path, _ = package.write(tmp_path)
    change(weights)
    save_file(weights, tmp_path / "wrong.safetensors")
    with pytest.raises(PackageError, match=says):
        Package.from_files(program_path, [tmp_path / "wrong.safetensors"])


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"\x00" * 8, (2**60).to_bytes(8, "little") + b"{}"])
def test_weights_that_are_no_safetensors_are_refused(data: bytes, tmp_path: Path) -> None:
    program_path, _ = honest().write(tmp_path)
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(PackageError, match="refused"):
        Package.from_files(program_path, [tmp_path / "bad"])


def test_the_list_of_operations_holds_real_and_harmless_ones() -> None:
    for name in ops.ALLOWED_OPS:
        schema = ops.resolve(name)._schema
        assert not schema.is_mutable or name in ops.MUTATING_OPS
        kinds = {str(argument.real_type) for argument in schema.arguments}
        assert not kinds & {"Storage", "Any"}
    banned = {"as_strided", "empty", "set_", "resize_", "lstm", "from_file", "einsum", "nonzero"}
    assert not banned & {name.split(".")[1] for name in ops.ALLOWED_OPS}
