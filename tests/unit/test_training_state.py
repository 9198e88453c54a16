"""Pieces and shards: what is written comes back under other cuts; what a stranger made up does not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ravnest_p2p.core.errors import BlobError, OurFault, PackageError, RemoteFault
from ravnest_p2p.core.types import BlobHash, FieldSpec, OptimizerSpec
from ravnest_p2p.training import FieldReader, TensorSpec, load_pieces, spec_of, write_shards
from ravnest_p2p.training.tensorfile import HEADER_LIMIT_BYTES, write_tensors
from tests.unit.pieces import save_piece
from tests.unit.training_models import Pipeline, classes, classifier, cut, trainers_of

WANTED = {"w": TensorSpec("float32", (2,))}
META = {"format": "ravnest-piece/1", "version": "3", "batches_done": "7"}


def trained_pieces(
    folder: Path, bounds: tuple[int, ...], offsets: tuple[int, ...]
) -> tuple[list[Path], dict, dict, dict]:
    """Train three updates in stages, save each under the whole model's names; what was saved."""
    stages = cut(classifier(0), bounds)
    trainers = trainers_of(stages, OptimizerSpec("adamw", 0.01), m=2, staleness=[0] * len(stages))
    Pipeline(trainers, classes(6, 1), [0] * len(stages), 2).run()
    paths, params, buffers, slots = [], {}, {}, {}
    for s, (trainer, offset) in enumerate(zip(trainers, offsets, strict=True)):

        def named(tensors: dict, offset: int = offset) -> dict:
            parts = [(key.split(".", 1), value) for key, value in tensors.items()]
            return {f"{int(head) + offset}.{rest}": value for (head, rest), value in parts}

        mine = named(trainer.params), named(trainer.buffers), named(trainer.optimizer_state())
        paths.append(folder / f"{s}.safetensors")
        save_piece(paths[-1], *mine, version=trainer.version, batches_done=12)
        params |= mine[0]
        buffers |= mine[1]
        slots |= mine[2]
    return paths, params, buffers, slots


def test_pieces_load_under_other_cuts(tmp_path: Path) -> None:
    paths, params, buffers, slots = trained_pieces(tmp_path, (3, 6), (0, 3, 6))
    for lo, hi in [(0, 2), (2, 5), (5, 7), (0, 7)]:
        inside = lambda name, lo=lo, hi=hi: lo <= int(name.split(".")[0]) < hi  # noqa: E731
        wanted_params = {n: spec_of(t) for n, t in params.items() if inside(n)}
        wanted_buffers = {n: spec_of(t) for n, t in buffers.items() if inside(n)}
        state = load_pieces(paths, wanted_params, wanted_buffers)
        assert (state.version, state.batches_done) == (3, 12)
        assert list(state.params) == list(wanted_params)
        assert all(torch.equal(state.params[n], params[n]) for n in wanted_params)
        assert all(torch.equal(state.buffers[n], buffers[n]) for n in wanted_buffers)
        assert state.optimizer_state.keys() == wanted_params.keys()
        for name, found in state.optimizer_state.items():
            assert found.keys() == slots[name].keys() == {"step", "exp_avg", "exp_avg_sq"}
            assert all(torch.equal(found[slot], slots[name][slot]) for slot in found)


def test_a_piece_is_standard_deterministic_and_replaced_at_once(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6).view(2, 3).t(),
        "a": torch.ones(3, dtype=torch.bfloat16),
        "s": torch.tensor(True),
    }
    first, second = tmp_path / "one", tmp_path / "two"
    write_tensors(first, tensors, {"x": "1", "a": "2", "k": "3"})
    write_tensors(second, dict(reversed(tensors.items())), {"k": "3", "a": "2", "x": "1"})
    assert first.read_bytes() == second.read_bytes()
    loaded = load_file(first)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(OurFault):
        write_tensors(first, {"c": torch.zeros(1, dtype=torch.complex64)}, {})
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Tensor) -> memoryview:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ravnest_p2p.training.tensorfile._bytes_of", full)
    with pytest.raises(OSError, match="No space"):
        save_piece(tmp_path / "p", {"w": torch.ones(1)}, {}, {}, version=0, batches_done=0)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_of_the_old_piece_keeps_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "p"
    write_tensors(path, {"w": torch.ones(3)}, {})
    old = path.read_bytes()
    with path.open("rb") as reader:
        write_tensors(path, {"w": torch.zeros(3)}, {})
        assert reader.read() == old
    assert path.read_bytes() != old


def piece(tensors: dict[str, Tensor], metadata: dict[str, str] = META) -> Callable[[Path], None]:
    return lambda path: save_file(tensors, path, metadata)


def header(text: bytes, length: int | None = None) -> Callable[[Path], None]:
    size = len(text) if length is None else length
    return lambda path: path.write_bytes(size.to_bytes(8, "little") + text + bytes(8)) and None


W = torch.ones(2)
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def described(entry: dict[str, object]) -> bytes:
    return json.dumps({"param/w": entry, "__metadata__": META}).encode()


def sound(path: Path) -> Path:
    """A piece that would be taken, beside the path."""
    target = path.with_name("sound")
    header(described(ENTRY))(target)
    return target


HOSTILE: dict[str, tuple[Callable[[Path], None], type[RemoteFault]]] = {
    "missing file": (lambda path: None, BlobError),
    "empty": (lambda path: path.write_bytes(b"") and None, BlobError),
    "pickle": (lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n(S'x'\ntR.") and None, BlobError),
    "huge header": (header(described(ENTRY) + b" " * HEADER_LIMIT_BYTES), BlobError),
    "endless header": (header(b"{}", 2**64 - 1), BlobError),
    "key twice": (
        header(described(ENTRY)[:-1] + b', "param/w": ' + json.dumps(ENTRY).encode() + b"}"),
        BlobError,
    ),
    "pipe": (os.mkfifo, BlobError),
    "link": (lambda path: path.symlink_to(sound(path)), BlobError),
    "folder": (Path.mkdir, BlobError),
    "deep header": (header(b"[" * 200_000), BlobError),
    "not UTF-8": (header(b'{"\xff": 1}'), BlobError),
    "offsets outside": (header(described({**ENTRY, "shape": [200], "data_offsets": [0, 800]})), BlobError),
    "negative shape": (header(described({**ENTRY, "shape": [-2]})), BlobError),
    "overflowing shape": (header(described({**ENTRY, "shape": [2**62, 2**62]})), BlobError),
    "no metadata": (lambda path: save_file({"param/w": W}, path), BlobError),
    "another format": (piece({"param/w": W}, {**META, "format": "x"}), BlobError),
    "no version": (piece({"param/w": W}, {k: v for k, v in META.items() if k != "version"}), BlobError),
    "negative version": (piece({"param/w": W}, {**META, "version": "-1"}), BlobError),
    "huge version": (piece({"param/w": W}, {**META, "version": "9" * 5000}), BlobError),
    "Arabic digits": (piece({"param/w": W}, {**META, "version": "\u0663"}), BlobError),
    "other name": (piece({"param/v": W}), PackageError),
    "other shape": (piece({"param/w": torch.ones(3)}), BlobError),
    "endless shape": (header(described({**ENTRY, "shape": [1] * 50_000 + [2]})), BlobError),
    "other dtype": (piece({"param/w": W.double()}), BlobError),
    "NaN": (piece({"param/w": torch.tensor([1.0, float("nan")])}), BlobError),
    "infinity": (piece({"param/w": torch.tensor([1.0, float("inf")])}), BlobError),
    "state shape": (piece({"param/w": W, "optim/w/exp_avg": torch.ones(3)}), BlobError),
    "state NaN": (piece({"param/w": W, "optim/w/exp_avg": W * float("nan")}), BlobError),
    "state negative": (piece({"param/w": W, "optim/w/exp_avg_sq": -W}), BlobError),
    "step shape": (piece({"param/w": W, "optim/w/step": torch.zeros(2)}), BlobError),
}


def test_the_pattern_of_the_hostile_ones_is_sound(tmp_path: Path) -> None:
    header(described(ENTRY))(tmp_path / "piece")
    assert load_pieces([tmp_path / "piece"], WANTED, {}).params["w"].tolist() == [0, 0]


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pieces_are_refused_by_name(tmp_path: Path, case: str) -> None:
    make, error = HOSTILE[case]
    make(tmp_path / "piece")
    with pytest.raises(error) as caught:
        load_pieces([tmp_path / "piece"], WANTED, {})
    assert len(str(caught.value)) < 400


def test_pieces_of_different_rounds_do_not_mix(tmp_path: Path) -> None:
    for name, done in (("a", 4), ("b", 8)):
        save_piece(tmp_path / name, {name: W}, {}, {}, version=1, batches_done=done)
    wanted = {"a": TensorSpec("float32", (2,)), "b": TensorSpec("float32", (2,))}
    with pytest.raises(PackageError, match="different rounds"):
        load_pieces([tmp_path / "a", tmp_path / "b"], wanted, {})
    with pytest.raises(PackageError):
        load_pieces([], wanted, {})


def field_of(
    shards: list[tuple[Path, int]], dtype: str, shape: tuple[int, ...]
) -> tuple[FieldSpec, list[Path]]:
    named = tuple((BlobHash(path.name), rows) for path, rows in shards)
    return FieldSpec("x", "input", dtype, shape, named), [path for path, _ in shards]


@pytest.mark.parametrize("tensor", [torch.arange(60).view(10, 3, 2), torch.randn(10), torch.arange(10) > 4])
def test_rows_come_back_over_shards(tmp_path: Path, tensor: Tensor) -> None:
    shards = write_shards(tensor, tmp_path / "data", 4)
    assert [rows for _, rows in shards] == [4, 4, 2]
    spec, paths = field_of(shards, spec_of(tensor).dtype, tuple(tensor.shape[1:]))
    with FieldReader(spec, paths) as reader:
        assert len(reader) == 10
        order = [9, 0, 3, 4, 4, 8]
        rows = reader.rows(order)
        assert rows.dtype == tensor.dtype
        for outside in (-1, 10):
            with pytest.raises(OurFault):
                reader.rows([outside])
    assert torch.equal(rows, tensor[order])


def test_shards_that_are_not_what_the_manifest_says_are_refused(tmp_path: Path) -> None:
    shards = write_shards(torch.zeros(4, 3), tmp_path, 4)
    spec, paths = field_of(shards, "float32", (3,))
    save_file({"rows": torch.zeros(4, 3), "more" * 10_000: W}, tmp_path / "two")
    for wrong, files in [
        (field_of(shards, "float64", (3,))[0], paths),
        (field_of(shards, "float32", (4,))[0], paths),
        (field_of([(paths[0], 5)], "float32", (3,))[0], paths),
        (spec, []),
        (spec, [tmp_path / "absent"]),
        (spec, [tmp_path / "two"]),
    ]:
        with pytest.raises(BlobError) as caught:
            FieldReader(wrong, files)
        assert len(str(caught.value)) < 400


def test_nothing_to_cut_is_refused(tmp_path: Path) -> None:
    for tensor, rows in ((torch.zeros(0, 3), 2), (torch.tensor(1.0), 2), (torch.zeros(3), 0)):
        with pytest.raises(OurFault):
            write_shards(tensor, tmp_path, rows)
