"""Attacks on the two files of a package: what stands in their place, and weights that lie."""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ravnest_p2p.model import ops
from tests.property.attack_base import HONEST, Attack, Files

_LEAVES = HONEST["params"] + HONEST["buffers"]
_TENSORS = {name: torch.zeros(shape, dtype=ops.DTYPES[dtype]) for name, shape, dtype, _ in _LEAVES}
WEIGHTS = save(_TENSORS)
_HEADER_BYTES = int.from_bytes(WEIGHTS[:8], "little")


def honest_files(folder: Path) -> tuple[Path, list[Path | str]]:
    program, weights = folder / "program.json", folder / "weights.safetensors"
    program.write_text(json.dumps(HONEST))
    weights.write_bytes(WEIGHTS)
    return program, [weights]


def _program(make: Callable[[Path], object], says: str) -> Attack:
    """Something else at the place of the program."""

    def files(folder: Path) -> Files:
        program, weights = honest_files(folder)
        program.unlink()
        make(program)
        return program, weights

    return Attack(says, files=files)


def _weights(make: Callable[[Path], object], says: str) -> Attack:
    """Something else at the place of the weights."""

    def files(folder: Path) -> Files:
        program, weights = honest_files(folder)
        path = Path(weights[0])
        path.unlink()
        make(path)
        return program, [path]

    return Attack(says, files=files)


def _bytes(data: bytes, says: str = "refused") -> Attack:
    return _weights(lambda path: path.write_bytes(data), says)


def _raw(header: bytes, data: bytes = b"", length: int | None = None, says: str = "refused") -> Attack:
    """A safetensors file with that header."""
    size = len(header) if length is None else length
    return _bytes(size.to_bytes(8, "little") + header + data, says)


def _header(change: Callable[[dict[str, Any]], object], says: str = "refused", extra: bytes = b"") -> Attack:
    """The honest weights with a changed header."""
    header = json.loads(WEIGHTS[8 : 8 + _HEADER_BYTES])
    change(header)
    return _raw(json.dumps(header).encode(), WEIGHTS[8 + _HEADER_BYTES :] + extra, says=says)


def _tensor(name: str, **parts: Any) -> Attack:
    return _header(lambda header: header[name].update(parts), "refused|is \\(")


def _saved(change: Callable[[dict[str, torch.Tensor]], object], says: str) -> Attack:
    """Well-formed weights that are not those of the program."""
    tensors = dict(_TENSORS)
    change(tensors)
    return _bytes(save(tensors), says)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.safetensors", WEIGHTS)


def _zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights.safetensors", bytes(50 << 20))


def _polyglot(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    path.write_bytes(WEIGHTS + path.read_bytes())


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "program.json", "../../escape.json")


def _sparse(path: Path, size: int, head: bytes = b"") -> None:
    path.write_bytes(head)
    os.truncate(path, size)


def _link(path: Path, text: bytes) -> None:
    target = path.with_name("target")
    target.write_bytes(text)
    path.symlink_to(target)


def _twice(folder: Path) -> Files:
    program, weights = honest_files(folder)
    return program, [*weights, *weights]


def _moved(header: dict[str, Any], name: str, by: int) -> None:
    header[name]["data_offsets"] = [offset + by for offset in header[name]["data_offsets"]]


_JSON = json.dumps(HONEST).encode()
_HEADER = WEIGHTS[8 : 8 + _HEADER_BYTES]
_ODD = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' + (
    b'"body.bias":{"dtype":"F32","shape":[8],"data_offsets":[1,33]}}'
)

PLACES: dict[str, Attack] = {
    "program: missing": _program(lambda path: None, "cannot be read"),
    "program: a folder": _program(Path.mkdir, "not an ordinary"),
    "program: a link": _program(lambda path: _link(path, _JSON), "cannot be read"),
    "program: a link to itself": _program(lambda path: path.symlink_to(path), "cannot be read"),
    "program: a link to a device": _program(lambda path: path.symlink_to("/dev/zero"), "cannot be read"),
    "program: a pipe": _program(os.mkfifo, "not an ordinary"),
    "program: a terabyte of nothing": _program(lambda path: _sparse(path, 1 << 40), "over the limit"),
    "program: a device": Attack(
        "not an ordinary", files=lambda folder: (Path("/dev/zero"), honest_files(folder)[1])
    ),
    "program: a name with NUL": Attack(
        "cannot be read", files=lambda folder: ("pro\0gram", honest_files(folder)[1])
    ),
    "program: the weights": _program(lambda path: path.write_bytes(WEIGHTS), "not valid JSON"),
    "weights: none": Attack("lack", files=lambda folder: (honest_files(folder)[0], [])),
    "weights: missing": _weights(lambda path: None, "cannot be read"),
    "weights: a folder": _weights(Path.mkdir, "not an ordinary"),
    "weights: a link": _weights(lambda path: _link(path, WEIGHTS), "cannot be read"),
    "weights: a pipe": _weights(os.mkfifo, "not an ordinary"),
    "weights: a device": Attack(
        "not an ordinary", files=lambda folder: (honest_files(folder)[0], ["/dev/zero"])
    ),
    "weights: a zip of them": _weights(_zip, "refused"),
    "weights: a zip bomb": _weights(_zip_bomb, "refused"),
    "weights: a zip behind them": _weights(_polyglot, "refused"),
    "weights: a tar that climbs": _weights(_tar, "refused"),
    "weights: a pickle of torch": _weights(lambda path: torch.save(_TENSORS, path), "refused"),
    "weights: the program": _bytes(_JSON),
    "weights: the same file twice": Attack("twice", files=_twice),
}

HEADERS: dict[str, Attack] = {
    "weights: empty": _bytes(b""),
    "weights: seven bytes": _bytes(b"\x01" * 7),
    "weights: a header of nothing": _bytes(bytes(8)),
    "weights: a header of 2^64 bytes": _raw(b"{}", length=2**64 - 1),
    "weights: a header of 2^63 bytes": _raw(b"{}", length=2**63),
    "weights: a header past the end": _raw(b"{}", length=100),
    "weights: a header over the limit": _raw(b"{" + b" " * (9 << 20) + b"}"),
    "weights: a terabyte of header": _weights(
        lambda path: _sparse(path, 1 << 40, (1 << 39).to_bytes(8, "little") + b"{"), "refused"
    ),
    "weights: a header of spaces": _raw(b" " * (8 << 20)),
    "weights: a header of empty objects": _raw(b'{"a":[' + b"{}," * 2_000_000 + b"0]}"),
    "weights: a header nested deeply": _raw(b'{"a":' * 100_000),
    "weights: a header that is a list": _raw(b"[]"),
    "weights: a header with NaN": _raw(b'{"a":NaN}'),
    "weights: a header of no UTF-8": _raw(b'{"\xff":1}'),
    "weights: a tensor twice in a file": _raw(
        _HEADER.rstrip()[:-1] + b"," + _HEADER[1:], WEIGHTS[8 + _HEADER_BYTES :], says="twice"
    ),
    "weights: metadata of numbers": _header(lambda header: header.update(__metadata__={"a": 1})),
    "weights: metadata nested": _header(lambda header: header.update(__metadata__={"a": {"b": "c"}})),
    "weights: offsets that overlap": _header(lambda header: _moved(header, "body.bias", -4)),
    "weights: offsets with a gap": _header(lambda header: _moved(header, "body.weight", 4)),
    "weights: offsets past the end": _header(lambda header: _moved(header, "body.weight", 2**40)),
    "weights: offsets negative": _tensor("body.bias", data_offsets=[-32, 0]),
    "weights: offsets reversed": _tensor("body.bias", data_offsets=[64, 32]),
    "weights: offsets that overflow": _tensor("body.bias", data_offsets=[2**64 - 16, 16]),
    "weights: offsets of fractions": _tensor("body.bias", data_offsets=[0.0, 32.0]),
    "weights: one offset": _tensor("body.bias", data_offsets=[0]),
    "weights: two names for one place": _header(lambda header: header.update(twin=header["body.bias"])),
    "weights: a shape larger than its bytes": _tensor("body.bias", shape=[2**40]),
    "weights: a shape that overflows": _tensor("body.bias", shape=[2**32, 2**32]),
    "weights: a negative shape": _tensor("body.bias", shape=[-8]),
    "weights: a shape of fractions": _tensor("body.bias", shape=[8.0]),
    "weights: an unknown dtype": _tensor("body.bias", dtype="F999"),
    "weights: a dtype in lower case": _tensor("body.bias", dtype="f32"),
    "weights: whole numbers of the same size": _tensor("body.bias", dtype="I32"),
    "weights: 8-bit floats": _tensor("body.bias", dtype="F8_E4M3", shape=[32]),
    "weights: no dtype": _header(lambda header: header["body.bias"].pop("dtype")),
    "weights: no tensors": _raw(b"{}", says="lack"),
    "weights: bytes at odd places": _raw(_ODD, bytes(33), says="refused|does not use"),
    "weights: cut off": _bytes(WEIGHTS[:-1]),
    "weights: cut off in the header": _bytes(WEIGHTS[: _HEADER_BYTES // 2]),
    "weights: one byte more": _bytes(WEIGHTS + b"\0"),
    "weights: megabytes more": _bytes(WEIGHTS + bytes(1 << 20)),
    "weights: one missing": _saved(lambda t: t.pop("body.bias"), "lack 'body.bias'"),
    "weights: one too many": _saved(lambda t: t.update(evil=torch.zeros(1)), "does not use"),
    "weights: one with a path for a name": _saved(
        lambda t: t.update({"../../evil": torch.zeros(1)}), "does not use"
    ),
    "weights: one under another name": _saved(lambda t: t.update(bias=t.pop("body.bias")), "does not use"),
    "weights: another shape": _saved(lambda t: t.update({"body.bias": torch.zeros(9)}), "is \\("),
    "weights: the same size in another shape": _saved(
        lambda t: t.update({"body.bias": torch.zeros(2, 4)}), "is \\("
    ),
    "weights: an empty tensor": _saved(lambda t: t.update({"body.bias": torch.zeros(0)}), "is \\("),
    "weights: another precision": _saved(
        lambda t: t.update({"body.bias": torch.zeros(8, dtype=torch.float64)}), "is \\("
    ),
    "weights: complex numbers": _saved(
        lambda t: t.update({"body.bias": torch.zeros(8, dtype=torch.complex64)}), "is \\(|refused"
    ),
}
