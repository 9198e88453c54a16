"""Attacks on the text and the form of a program."""

from __future__ import annotations

import gzip
import io
import json
import zipfile

from tests.property.attack_base import (
    COUNT,
    F32,
    FROZEN,
    HIDDEN,
    HONEST,
    LABELS,
    LOSS,
    MEAN,
    NEW,
    RELU,
    VARIANCE,
    WEIGHT,
    Attack,
    Document,
    X,
    bent,
    leaf,
    more,
    node,
    put,
    ref,
    text,
)

_JSON = json.dumps(HONEST)
_EVIL = "cos\nsystem\n(S'true'\ntR."


def _zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, _JSON)
    return file.getvalue()


def _with(old: str, new: str) -> str:
    assert old in _JSON
    return _JSON.replace(old, new, 1)


def _many_giants(document: Document) -> None:
    document["params"] = [[f"p{i}", [15 * 10**9], F32, "param"] for i in range(80)]
    document["nodes"] = [node("sum.default", [ref(3)], ())]
    document.update(output=3 + 80 + 4, layers=[1])


TEXTS: dict[str, Attack] = {
    "nothing": text(b"", "not valid JSON"),
    "spaces only": text(b" " * 1000, "not valid JSON"),
    "spaces over the limit": text(b" " * (17 << 20), "over the limit"),
    "null": text("null", "keys"),
    "a list": text("[]", "keys"),
    "a number": text("7", "keys"),
    "a text": text('"program"', "keys"),
    "cut off": text(_JSON[:-1], "not valid JSON"),
    "two programs": text(_JSON + _JSON, "not valid JSON"),
    "no UTF-8": text(_JSON.encode().replace(b"x0", b"\xff0"), "not valid JSON"),
    "UTF-16": text(_JSON.encode("utf-16"), "not valid JSON"),
    "byte order mark": text(b"\xef\xbb\xbf" + _JSON.encode(), "not valid JSON"),
    "Python in place of JSON": text(repr(HONEST), "not valid JSON"),
    "a pickle": text(_EVIL, "not valid JSON"),
    "a zip": text(_zipped("program.json"), "not valid JSON"),
    "a gzip": text(gzip.compress(_JSON.encode()), "not valid JSON"),
    "comments": text("/* */" + _JSON, "not valid JSON"),
    "NaN": text(_with('"output": 12', '"output": NaN'), "NaN is not JSON"),
    "infinity": text(_with('"output": 12', '"output": Infinity'), "not JSON"),
    "negative infinity": text(_with('"output": 12', '"output": -Infinity'), "not JSON"),
    "a key twice": text(_with('"output": 12', '"output": 12, "output": 3'), "twice"),
    "a reference twice": text(_with('{"slot": 0}', '{"slot": 0, "slot": 1}'), "twice"),
    "a keyword twice": text(_with("{}", '{"alpha": 1, "alpha": 2}'), "twice"),
    "a million digits": text('{"output": ' + "9" * 1_000_000 + "}", "digits"),
    "twenty-one digits": text(_with('"output": 12', '"output": ' + "1" * 21), "digits"),
    "float overflow": text(_with("1e-05", "1e999"), "out of range"),
    "deep lists": text("[" * 1_000_000, "not valid JSON"),
    "deep objects": text('{"a":' * 200_000, "not valid JSON"),
    "empty lists by the million": text("[" + "[]," * 2_000_000 + "0]", "items"),
    "empty objects by the million": text("[" + "{}," * 2_000_000 + "0]", "items"),
    "empty lists up to the limit": text("[" + "[]," * 499_000 + "0]", "keys"),
    "empty objects up to the limit": text("[" + "{}," * 499_000 + "0]", "keys"),
    "small objects up to the limit": text("[" + '{"a":1},' * 499_000 + "0]", "keys"),
    "numbers by the million": text("[" + "1," * 7_000_000 + "0]", "items"),
    "numbers up to the limit": text("[" + "1234567," * 990_000 + "0]", "keys"),
    "texts up to the limit": text("[" + '"\u4e00a",' * 990_000 + "0]", "keys"),
    "a text of megabytes": text(json.dumps({"format": "a" * (16_000_000)}), "keys"),
    "a text of wide letters": text('{"format": "' + "\U0001f600" + "a" * 16_000_000 + '"}', "keys"),
}
for _depth in (100, 500, 900, 950, 980):
    TEXTS[f"a name {_depth} lists deep"] = text(
        _with('"body.bias"', "[" * _depth + "]" * _depth), "malformed|JSON"
    )

FORMS: dict[str, Attack] = {
    "a key missing": bent(lambda d: d.pop("tied"), "keys"),
    "a key too many": put("code", "import os", "keys"),
    "another format": put("format", "torch.export", "format"),
    "inputs as an object": put("inputs", {}, "not a list"),
    "a tensor as an object": put("params/0", {"name": "w"}, "not \\[name"),
    "a tensor of three parts": put("params/0", ["w", [1], F32], "not \\[name"),
    "a tensor of five parts": put("params/0", ["w", [1], F32, "param", _EVIL], "not \\[name"),
    "30,001 parameters": bent(
        lambda d: d["params"].extend([[f"p{i}", [1], F32, "param"] for i in range(30_001)]), "items"
    ),
    "name: none": leaf("malformed", name=""),
    "name: a number": leaf("malformed", name=7),
    "name: a list": leaf("malformed", name=["w"]),
    "name: 513 letters": leaf("malformed", name="a" * 513),
    "name: a new line": leaf("malformed", name="a\nb"),
    "name: NUL": leaf("malformed", name="a\0b"),
    "name: terminal colours": leaf("malformed", name="\x1b[31mred"),
    "name: right to left": leaf("malformed", name="safe\u202etxt.exe"),
    "name: invisible letters": leaf("malformed", name="body\u200b.weight"),
    "name: half a surrogate": leaf("malformed", name="a\ud800"),
    "name: up a folder": leaf("malformed", name="../../etc/passwd"),
    "name: up a folder in the middle": leaf("malformed", name="body/../../key"),
    "name: absolute path": leaf("malformed", name="/etc/passwd"),
    "name: home folder": leaf("malformed", name="~/.ssh/id_rsa"),
    "name: Windows path": leaf("malformed", name="C:\\Windows\\system.ini"),
    "name: safetensors metadata": leaf("malformed", name="__metadata__"),
    "name: twice": leaf("twice", name="body.bias"),
    "name: that of an input": leaf("twice", name="x0"),
    "name: that of a buffer": leaf("twice", name="norm.mean"),
    "input: not a field": put("inputs/0/0", "weights", "not x0"),
    "input: foreign digits": put("inputs/0/0", "x\u0663", "not x0"),
    "input: leading zero": put("inputs/0/0", "x00", "not x0"),
    "input: negative": put("inputs/0/0", "x-1", "not x0"),
    "input: huge number": put("inputs/0/0", "x" + "9" * 300, "not x0"),
    "kind: unknown": leaf("kind", kind="code"),
    "kind: none": leaf("kind", kind=None),
    "kind: a list": leaf("kind", kind=["param"]),
    "kind: a buffer among parameters": leaf("kind", kind="buffer"),
    "kind: a parameter among inputs": put("inputs/0/3", "param", "kind"),
    "dtype: unknown": leaf("dtype", dtype="float128"),
    "dtype: complex": leaf("dtype", dtype="complex64"),
    "dtype: 8-bit float": leaf("dtype", dtype="float8_e4m3fn"),
    "dtype: quantised": leaf("dtype", dtype="quint8"),
    "dtype: with prefix": leaf("dtype", dtype="torch.float32"),
    "dtype: a list": leaf("dtype", dtype=[F32]),
    "dtype: an attribute": leaf("dtype", dtype="__class__"),
    "dtype: whole-number parameter": leaf("floating", dtype="int64"),
    "dtype: truth-value parameter": leaf("floating", dtype="bool"),
    "shape: a text": leaf("not a list", shape="88"),
    "shape: a fraction": leaf("size", shape=[2.0]),
    "shape: a truth value": leaf("size", shape=[True]),
    "shape: negative": leaf("size", shape=[-1]),
    "shape: 2^63": leaf("size", shape=[2**63]),
    "shape: product overflows": leaf("too large", shape=[2**32, 2**32]),
    "shape: overflow behind a zero": leaf("too large", shape=[2**47, 2**47, 0, 2**47]),
    "shape: 13 dimensions": leaf("over the limit", shape=[1] * 13),
    "shape: a terabyte": put("inputs/1/1", [2**38], "over the limit"),
    "shape: many times 60 GB": bent(_many_giants, "together"),
    "output: another slot": put("output", RELU, "scalar loss"),
    "output: out of range": put("output", 10**6, "output"),
    "output: negative": put("output", -1, "output"),
    "output: a truth value": put("output", True, "output"),
    "output: labels": put("output", COUNT, "scalar loss"),
    "output: without gradient": put("nodes/4/4", True, "does not depend"),
    "layers: none": put("layers", [], "ascend"),
    "layers: too short": put("layers", [4], "ascend"),
    "layers: past the end": put("layers", [6], "layer bound"),
    "layers: falling": put("layers", [3, 2, 5], "ascend"),
    "layers: zero": put("layers", [0, 5], "layer bound"),
    "layers: by the million": put("layers", list(range(1, 60_001)), "items"),
    "layers: through a shared buffer": bent(
        lambda d: (d["nodes"].insert(4, node("add_.Tensor", [ref(COUNT), 1])), d.update(layers=[4, 6])),
        "both sides",
    ),
    "tied: to nothing": put("tied", [["ghost", "other"]], "tied"),
    "tied: alone": put("tied", [["body.bias"]], "tied"),
    "tied: two that are held": put("tied", [["body.bias", "body.weight"]], "tied"),
    "tied: twice": put("tied", [["body.bias", "a"], ["body.weight", "a"]], "tied twice"),
    "tied: path": put("tied", [["body.bias", "../a"]], "malformed"),
    "transient: nothing": put("transient", ["ghost"], "transient"),
    "transient: a parameter": put("transient", ["body.bias"], "transient"),
}

_OPS = [
    "aten.as_strided.default",
    "aten.set_.source_Tensor",
    "aten.resize_.default",
    "aten.empty.memory_format",
    "aten.empty_like.default",
    "aten.new_empty.default",
    "aten.view.dtype",
    "aten.from_file.default",
    "aten.einsum.default",
    "aten.nonzero.default",
    "aten.masked_select.default",
    "aten._unsafe_view.default",
    "aten.lstm.input",
    "aten.gru.input",
    "aten.rnn_tanh.input",
    "aten._embedding_bag.default",
    "aten.unique2.default",
    "aten._local_scalar_dense.default",
    "aten._index_put_impl_.default",
    "aten.relu_.default",
    "aten.sum.out",
    "aten.add.out",
    "aten.to.device",
    "aten.bincount.default",
    "aten.histc.default",
    "aten.searchsorted.Tensor",
    "aten.multinomial.default",
    "aten.sparse_coo_tensor.size",
    "aten._cdist_forward.default",
    "aten.quantize_per_tensor.default",
    "aten.fft_fft.default",
    "aten.linalg_inv.default",
]
_NO_OPS = {
    "os.system": "os.system.default",
    "eval": "builtins.eval.default",
    "a dunder": "aten.__class__.default",
    "a dunder overload": "aten.add.__init__",
    "without overload": "aten.linear",
    "with prefix": "torch.ops.aten.linear.default",
    "upper case": "aten.Linear.default",
    "a NUL at the end": "aten.linear.default\0",
    "a space at the end": "aten.linear.default ",
    "a Cyrillic letter": "\u0430ten.linear.default",
    "another library": "prim.device.default",
    "dots only": "..",
    "empty": "",
}
OPS: dict[str, Attack] = {f"operation {op}": put("nodes/0/0", op, "not allowed") for op in _OPS}
OPS |= {f"operation: {name}": put("nodes/0/0", op, "not allowed") for name, op in _NO_OPS.items()}
OPS |= {
    "operation: a number": put("nodes/0/0", 7, "not a name"),
    "operation: a list": put("nodes/0/0", ["aten.linear.default"], "not a name"),
    "operation: 10,000 letters": put("nodes/0/0", "a" * 10_000, "not a name"),
}

REFERENCES: dict[str, Attack] = {
    "reference forward": put("nodes/0/1/0", ref(HIDDEN), "reference"),
    "reference to the own result in a list": put("nodes/3/1", [ref(RELU)], "reference"),
    "reference far beyond": put("nodes/0/1/0", ref(10**9), "reference"),
    "reference negative": put("nodes/0/1/0", ref(-1), "reference"),
    "reference as a fraction": put("nodes/0/1/0", {"slot": 0.0}, "reference"),
    "reference as a truth value": put("nodes/0/1/0", {"slot": False}, "reference"),
    "reference as a text": put("nodes/0/1/0", {"slot": "0"}, "reference"),
    "reference as a list": put("nodes/0/1/0", {"slot": [0]}, "reference"),
    "argument with two tags": put("nodes/0/1/0", {"slot": 0, "dtype": F32}, "one key"),
    "argument without tag": put("nodes/0/1/0", {}, "one key"),
    "argument: a device": put("nodes/0/1/0", {"device": "cuda:0"}, "unknown"),
    "argument: a generator": put("nodes/0/1/0", {"generator": 7}, "unknown"),
    "argument: an object": put("nodes/0/1/0", {"__reduce__": "os.system"}, "unknown"),
    "argument: a file": put("nodes/0/1/0", "/etc/passwd", "not a valid"),
    "argument: a foreign dtype": put("nodes/0/1/0", {"dtype": "__dict__"}, "unknown value"),
    "argument: a foreign memory format": put("nodes/0/1/0", {"memory_format": "strided"}, "unknown value"),
    "argument: a number as text": put("nodes/0/1/0", {"float": "1e5"}, "unknown value"),
    "arguments as an object": put("nodes/0/1", {"slot": 0}, "not a list|valid|takes"),
    "arguments as a text": put("nodes/0/1", "012", "not a list"),
    "arguments nested": put("nodes/0/1/2", [[[[1]]]], "nested"),
    "arguments by the thousand": put("nodes/0/1/2", [1] * 5000, "over the limit"),
    "arguments too many": put("nodes/3/1", [ref(0), 1], "takes 1"),
    "arguments too few": put("nodes/0/1", [ref(X)], "lacks"),
    "keywords as a list": put("nodes/0/2", [], "not an object"),
    "keywords by the dozen": put("nodes/0/2", {f"k{i}": 1 for i in range(40)}, "not an object"),
    "keyword unknown": put("nodes/0/2", {"out": ref(X)}, "no argument"),
    "keyword twice": put("nodes/0/2", {"weight": ref(WEIGHT)}, "twice"),
    "keyword: a device": more(
        node("zeros.default", [[2]], (2,), kwargs={"device": "cuda"}), says="not a valid"
    ),
    "keyword: a layout": more(node("zeros.default", [[2]], (2,), kwargs={"layout": 1}), says="not a valid"),
    "keyword: pinned memory": more(
        node("zeros.default", [[2]], (2,), kwargs={"pin_memory": True}), says="pin"
    ),
    "keyword: a generator": more(
        node("bernoulli.p", [ref(X), 0.5], (4, 8), kwargs={"generator": 1}), says="not a valid"
    ),
    "no_grad as a number": put("nodes/0/4", 1, "truth value"),
    "a node as an object": put("nodes/0", {"op": "aten.linear.default"}, "a node is not"),
    "a node of four parts": put("nodes/0", ["aten.linear.default", [], {}, []], "a node is not"),
    "30,001 nodes": put("nodes", [[]] * 30_001, "items"),
    "40,001 results": more(
        node("zeros.default", [[4096]], (4096,)),
        *[node("unbind.int", [ref(NEW)], *[()] * 4096)] * 10,
        says="more than 40000",
    ),
}

WRITES: dict[str, Attack] = {
    "write to an input": put("nodes/1/1/0", ref(X), "not a buffer"),
    "write to labels": put("nodes/1/1/0", ref(LABELS), "not a buffer"),
    "write to a parameter": put("nodes/1/1/0", ref(WEIGHT), "not a buffer"),
    "write to a frozen parameter": put("nodes/1/1/0", ref(FROZEN), "not a buffer"),
    "write to a result": put("nodes/1/1/0", ref(HIDDEN), "not a buffer"),
    "write to a number": put("nodes/1/1/0", 3, "not a valid Tensor"),
    "write to a view of a buffer": more(
        node("alias.default", [ref(MEAN)], (8,)),
        node("zero_.default", [ref(NEW)]),
        says="not a buffer",
    ),
    "write by keyword": more(
        node("zero_.default", [], kwargs={"self": ref(WEIGHT)}), says="by position only"
    ),
    "copy by keyword": more(
        node("copy_.default", [], kwargs={"self": ref(WEIGHT), "src": ref(X)}), says="by position only"
    ),
    "write that declares a result": more(node("zero_.default", [ref(MEAN)], (8,)), says="no slot"),
    "write that does not fit": more(node("copy_.default", [ref(MEAN), ref(X)]), says="zero_|copy_|size"),
    "write of another dtype": more(node("add_.Tensor", [ref(COUNT), 0.5]), says="cast|Promotion"),
    "statistics in a parameter": put("nodes/2/1/3", ref(4), "not a buffer"),
    "statistics in an input": put("nodes/2/1/4", ref(X), "not a buffer"),
    "statistics in a frozen parameter": put("nodes/2/1/3", ref(FROZEN), "not a buffer"),
    "statistics in a result": put("nodes/2/1/4", ref(HIDDEN), "not a buffer"),
    "statistics of another size": put("nodes/2/1/3", ref(COUNT), "node 2"),
    "statistics by keyword": bent(
        lambda d: (
            d["nodes"][2].__setitem__(1, [ref(HIDDEN), None, None]),
            d["nodes"][2].__setitem__(
                2,
                {
                    "running_mean": ref(WEIGHT),
                    "running_var": ref(VARIANCE),
                    "training": True,
                    "momentum": 0.1,
                    "eps": 1e-5,
                    "cudnn_enabled": False,
                },
            ),
        ),
        "by position only",
    ),
    "a node that makes nothing": put("nodes/3/3", [], "no slot"),
    "a loss that is written over": more(node("zero_.default", [ref(LOSS)]), says="not a buffer"),
}
