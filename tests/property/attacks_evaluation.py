"""Attacks on the evaluation of a package: its own form, and its disagreement with the train program."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from tests.property.attack_base import F32, HONEST, I64, Attack, Document, Files, honest, node, ref
from tests.property.attacks_files import honest_files

X, TOKENS, LABELS, WEIGHT, BIAS, MEAN, VARIANCE, SCALE, HIDDEN, NORMED, RELU, LOSS, NEW = range(13)
"""Slots of the honest evaluation; NEW is the first result of an appended node."""

_NORM = [ref(HIDDEN), ref(SCALE), None, ref(MEAN), ref(VARIANCE), False, 0.1, 1e-5, False]
HONEST_EVALUATION: Document = {
    "format": "ravnest-evaluation/1",
    "inputs": HONEST["inputs"],
    "params": [*HONEST["params"], *HONEST["buffers"][:2]],
    "buffers": [HONEST["buffers"][3]],
    "nodes": [
        node("linear.default", [ref(X), ref(WEIGHT), ref(BIAS)], (4, 8)),
        node("batch_norm.default", _NORM, (4, 8)),
        node("relu.default", [ref(NORMED)], (4, 8)),
        node("cross_entropy_loss.default", [ref(RELU), ref(LABELS)], ()),
    ],
    "loss": LOSS,
    "outputs": [["output", RELU], ["parts.0", HIDDEN]],
}


def files_with(folder: Path, evaluation: bytes, program: Document = HONEST) -> Files:
    """An honest package with this evaluation."""
    program_path, weights = honest_files(folder)
    program_path.write_text(json.dumps(program))
    path = folder / "evaluation.json"
    path.write_bytes(evaluation)
    return program_path, weights, None, path


def _document() -> Document:
    return copy.deepcopy(HONEST_EVALUATION)


def _bytes(data: bytes | str, says: str) -> Attack:
    text = data if isinstance(data, bytes) else data.encode()
    return Attack(says, files=lambda folder: files_with(folder, text))


def _bent(change: Callable[[Document], object], says: str) -> Attack:
    document = _document()
    change(document)
    return _bytes(json.dumps(document), says)


def _put(path: str, value: Any, says: str) -> Attack:
    keys = [int(key) if key.lstrip("-").isdecimal() else key for key in path.split("/")]

    def change(document: Document) -> None:
        place: Any = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return _bent(change, says)


def _more(*nodes: list[Any], says: str) -> Attack:
    return _bent(lambda d: d["nodes"].extend(nodes), says)


def _leaf(group: str, leaf: list[Any], says: str) -> Attack:
    """One more tensor; what refers to slots behind it would refer to others, but nobody comes so far."""
    return _bent(lambda d: d[group].append(leaf), says)


def _moved(d: Document, name: str, source: str, target: str, kind: str) -> None:
    (leaf,) = [leaf for leaf in d[source] if leaf[0] == name]
    d[source].remove(leaf)
    d[target].append([*leaf[:3], kind])


def _of(change: Callable[[Document], object], says: str) -> Attack:
    """The honest evaluation beside a train program that was changed."""
    program = honest()
    change(program)
    data = json.dumps(HONEST_EVALUATION).encode()
    return Attack(says, files=lambda folder: files_with(folder, data, program))


def _place(make: Callable[[Path], object], says: str) -> Attack:
    """Something else at the place of the file."""

    def files(folder: Path) -> Files:
        program, weights = honest_files(folder)
        path = folder / "evaluation.json"
        make(path)
        return program, weights, None, path

    return Attack(says, files=files)


def _unheld(folder: Path) -> Files:
    document = _document()
    document["buffers"].append(["extra", [2], F32, "buffer"])
    document["nodes"] = [node("sum.default", [ref(SCALE + 1)], ())]
    document.update(loss=SCALE + 2, outputs=[])
    return files_with(folder, json.dumps(document).encode())


def _unused(folder: Path) -> Files:
    program, _, _, path = files_with(folder, json.dumps(HONEST_EVALUATION).encode())
    extra = folder / "extra.safetensors"
    extra.write_bytes(save({"extra": torch.zeros(2)}))
    return program, [folder / "weights.safetensors", extra], None, path


_JSON = json.dumps(HONEST_EVALUATION)
_RENAMED = ["body.weight", [8, 8], F32, "frozen"]

FORMS: dict[str, Attack] = {
    "evaluation: nothing": _bytes(b"", "the evaluation is not valid JSON"),
    "evaluation: cut off": _bytes(_JSON[:-1], "not valid JSON"),
    "evaluation: a list": _bytes("[]", "keys"),
    "evaluation: NaN": _bytes('{"format":NaN}', "not valid JSON"),
    "evaluation: a key twice": _bytes(_JSON[:-1] + ',"loss":0}', "not valid JSON"),
    "evaluation: nested deeply": _bytes('{"a":' * 100_000, "not valid JSON"),
    "evaluation: too long": _bytes(b" " * (17 << 20), "over the limit"),
    "evaluation: a pickle": _bytes(b"\x80\x04cos\nsystem\n(S'x'\ntR.", "not valid JSON"),
    "evaluation: the train program": _bytes(json.dumps(HONEST), "keys"),
    "evaluation: the train program's format": _put("format", HONEST["format"], "format"),
    "evaluation: code beside": _bent(lambda d: d.update(code="print()"), "keys"),
    "evaluation: layers": _bent(lambda d: d.update(layers=[4]), "keys"),
    "evaluation: no outputs": _bent(lambda d: d.pop("outputs"), "keys"),
    "evaluation: outputs are an object": _put("outputs", {"output": RELU}, "not a list"),
    "evaluation: outputs by the thousand": _put("outputs", [["a", 0]] * 4097, "over the limit"),
    "evaluation: an output without a name": _put("outputs/0", [RELU], "an output"),
    "evaluation: an output of an unknown slot": _put("outputs/0/1", NEW, "an output"),
    "evaluation: an output of a negative slot": _put("outputs/0/1", -1, "an output"),
    "evaluation: an output of a truth": _put("outputs/0/1", True, "an output"),
    "evaluation: an output with a line break": _put("outputs/0/0", "a\nb", "malformed"),
    "evaluation: an output with a path": _put("outputs/0/0", "../../evil", "malformed"),
    "evaluation: two outputs of one name": _put("outputs/1/0", "output", "one name"),
    "evaluation: a loss of an unknown slot": _put("loss", NEW, "loss"),
    "evaluation: a loss of a fraction": _put("loss", 1.0, "loss"),
    "evaluation: a loss that is no scalar": _put("loss", RELU, "not a scalar"),
    "evaluation: a loss of whole numbers": _bent(
        lambda d: (
            d["nodes"].append(node("any.default", [ref(RELU)], (), dtype="bool")),
            d.update(loss=NEW),
        ),
        "not a scalar",
    ),
    "evaluation: an operation that is not allowed": _put("nodes/2/0", "aten.as_strided.default", "allowed"),
    "evaluation: a forward reference": _put("nodes/0/1/0", ref(LOSS), "reference"),
    "evaluation: a smaller result": _put("nodes/2/3/0/0", [4, 4], "differ"),
    "evaluation: a bomb": _more(
        node("repeat.default", [ref(X), [2**20, 2**20]], (2**22, 2**23)), says="over the limit"
    ),
    "evaluation: products of wide matrices": _more(
        node("zeros.default", [[2**17, 2**16]], (2**17, 2**16)),
        node("zeros.default", [[2**16, 2**17]], (2**16, 2**17)),
        *[node("matmul.default", [ref(NEW), ref(NEW + 1)], (2**17, 2**17))] * 24,
        says="operations|together",
    ),
}

DISAGREEMENTS: dict[str, Attack] = {
    "evaluation: no inputs": _put("inputs", [], "reference|other inputs"),
    "evaluation: one input more": _bent(
        lambda d: d["inputs"].append(["y1", [4], I64, "input"]), "not a valid|other inputs"
    ),
    "evaluation: another batch": _put("inputs/0/1", [8, 8], "other inputs"),
    "evaluation: another input dtype": _put("inputs/1/2", "int32", "other inputs"),
    "evaluation: inputs in another order": _bent(lambda d: d["inputs"].reverse(), "other inputs"),
    "evaluation: an input of another name": _put("inputs/1/0", "x7", "other inputs"),
    "evaluation: a parameter of another shape": _put("params/0/1", [8, 9], "not as in the train step"),
    "evaluation: a parameter of another dtype": _put("params/0/2", "float64", "not as in the train step"),
    "evaluation: a parameter as state": _put("params/0/3", "buffer", "not as in the train step"),
    "evaluation: state as a parameter": _put("params/2/3", "param", "not as in the train step"),
    "evaluation: state of another shape": _put("params/2/1", [1], "not as in the train step"),
    "evaluation: a constant of another shape": _put("buffers/0/1", [1], "not as in the train step"),
    "evaluation: frozen as a buffer": _put("buffers/0/3", "buffer", "not as in the train step"),
    "evaluation: a trained constant": _bent(
        lambda d: _moved(d, "body.bias", "params", "buffers", "frozen"), "a constant of the evaluation"
    ),
    "evaluation: constant statistics": _bent(
        lambda d: _moved(d, "norm.var", "params", "buffers", "buffer"), "a constant of the evaluation"
    ),
    "evaluation: a changing constant": _bent(
        lambda d: _moved(d, "scale", "buffers", "params", "buffer"), "does not change 'scale'"
    ),
    "evaluation: an unknown parameter": _leaf("params", ["extra", [2], F32, "param"], "valid|not change"),
    "evaluation: a parameter twice": _leaf("buffers", _RENAMED, "twice"),
    "evaluation: an input as a constant": _leaf("buffers", ["x0", [4, 8], F32, "buffer"], "twice"),
    "evaluation: a constant with a path": _leaf("buffers", ["../evil", [2], F32, "buffer"], "malformed"),
    "evaluation: a tied tensor apart": Attack(
        "another name of a tied tensor",
        files=lambda folder: files_with(
            folder,
            json.dumps(_apart()).encode(),
            HONEST | {"tied": [["body.weight", "head.weight"]]},
        ),
    ),
    "evaluation: it trains": _put("nodes/1/1/5", True, "writes to a buffer"),
    "evaluation: it trains by keyword": _bent(
        lambda d: d["nodes"][1].__setitem__(
            slice(1, 3), [_NORM[:5], {"training": True, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": False}]
        ),
        "writes to a buffer",
    ),
    "evaluation: it writes to state": _more(node("add_.Scalar", [ref(MEAN), 1]), says="writes to a buffer"),
    "evaluation: it writes to a constant": _more(
        node("zero_.default", [ref(SCALE)]), says="not a buffer|writes to a buffer"
    ),
    "evaluation: it writes to a parameter": _more(
        node("copy_.default", [ref(BIAS), ref(SCALE)]), says="not a buffer"
    ),
    "evaluation: it writes to an input": _more(node("zero_.default", [ref(X)]), says="not a buffer"),
    "evaluation: of a program with other inputs": _of(
        lambda d: d["inputs"][1].__setitem__(0, "x5"), "other inputs"
    ),
    "evaluation: of a program with constant statistics": _of(
        lambda d: d["nodes"][2][1].__setitem__(5, False), "does not change 'norm.mean'"
    ),
}

PLACES: dict[str, Attack] = {
    "evaluation: missing": _place(lambda path: None, "cannot be read"),
    "evaluation: a folder": _place(Path.mkdir, "not an ordinary"),
    "evaluation: a pipe": _place(os.mkfifo, "not an ordinary"),
    "evaluation: a link to a device": _place(lambda path: path.symlink_to("/dev/zero"), "cannot be read"),
    "evaluation: a terabyte of nothing": _place(
        lambda path: (path.touch(), os.truncate(path, 1 << 40)), "over the limit"
    ),
    "evaluation: a tensor that nobody sent": Attack("lack 'extra'", files=_unheld),
    "evaluation: a tensor that nobody uses": Attack("does not use", files=_unused),
}


def _apart() -> Document:
    document = _document()
    document["buffers"].append(["head.weight", [8, 8], F32, "frozen"])
    document["nodes"] = [node("sum.default", [ref(SCALE + 1)], ())]
    document.update(loss=SCALE + 2, outputs=[])
    return document
