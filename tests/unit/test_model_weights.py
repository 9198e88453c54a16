"""Weights in files by layers: every stage finds its own, little else, and reads no more than it touches."""

from __future__ import annotations

import hashlib
import os
from itertools import combinations, pairwise
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from ravnest_p2p.core.errors import CaptureError, ConfigError, PackageError
from ravnest_p2p.model import Package, Program, capture, capture_without_weights, load_tensors, stage_program
from ravnest_p2p.model import weights as weights_module
from ravnest_p2p.model.weights import WeightsFile, layers_of, write_weights
from tests.unit.model_zoo import CASES, Case, CharGpt, flat_cross_entropy, make

MB = 1 << 20


def captured(case: Case) -> Package:
    return capture(case.model, case.inputs, loss=case.loss, example_labels=case.labels)


def of_stage(files: list[WeightsFile], lo: int, hi: int) -> list[Path]:
    return [file.path for file in files if any(a < hi and lo < b for a, b in file.layers)]


def deep_gpt(depth: int = 9, width: int = 64) -> Package:
    torch.manual_seed(0)
    tokens = torch.randint(20, (2, 8))
    return captured(
        Case(CharGpt(depth=depth, width=width), (tokens,), (tokens.roll(-1, 1),), flat_cross_entropy)
    )


@pytest.mark.parametrize("sizes", [(32 * MB, 256 << 10), (2000, 100), (1, 0)], ids=["large", "small", "each"])
@pytest.mark.parametrize("name", CASES)
def test_every_stage_finds_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sizes: tuple[int, int]
) -> None:
    monkeypatch.setattr(weights_module, "PART_BYTES", sizes[0])
    monkeypatch.setattr(weights_module, "SMALL_BYTES", sizes[1])
    package = captured(make(name))
    program = package.program
    files = write_weights(tmp_path, program, package.weights)
    wanted = {leaf.name: leaf.spec for leaf in program.params + program.buffers}
    assert load_tensors([file.path for file in files], wanted).keys() == package.weights.keys()
    largest = max(leaf.spec.nbytes for leaf in program.params + program.buffers)
    assert all(sum(t.nbytes for t in _held(file.path)) <= max(sizes[0], largest) for file in files)
    for lo, hi in combinations(range(len(program.layer_bounds) + 1), 2):
        stage = stage_program(program, lo, hi)
        names = (*stage.params, *stage.buffers)
        found = load_tensors(of_stage(files, lo, hi), {n: wanted[n] for n in names}, partial=True)
        assert all(torch.equal(found[n], package.weights[n]) for n in names)


def _held(path: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return list(load_file(path).values())


def test_layers_are_those_whose_stages_hold_the_tensor() -> None:
    for name in CASES:
        program = captured(make(name)).program
        count = len(program.layer_bounds)
        for tensor, ranges in layers_of(program).items():
            users = {layer for layer in range(count) if tensor in _names(program, layer)}
            assert users == {layer for lo, hi in ranges for layer in range(lo, hi)}


def _names(program: Program, layer: int) -> tuple[str, ...]:
    stage = stage_program(program, layer, layer + 1)
    return (*stage.params, *stage.buffers)


def test_a_stage_fetches_little_more_than_its_share(tmp_path: Path) -> None:
    package = deep_gpt()
    files = write_weights(tmp_path, package.program, package.weights)
    whole = sum(file.path.stat().st_size for file in files)
    count = len(package.program.layer_bounds)
    edges = [0, count // 3, 2 * count // 3, count]
    for lo, hi in pairwise(edges):
        fetched = sum(path.stat().st_size for path in of_stage(files, lo, hi))
        needed = sum(package.weights[n].nbytes for k in range(lo, hi) for n in _names(package.program, k))
        assert fetched <= needed + 2 * weights_module.SMALL_BYTES + 50_000
        assert fetched < 0.6 * whole


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    digests = []
    for attempt in ("a", "b"):
        (tmp_path / attempt).mkdir()
        package = deep_gpt(depth=3)
        files = write_weights(tmp_path / attempt, package.program, package.weights)
        digests.append([hashlib.sha256(file.path.read_bytes()).hexdigest() for file in files])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == len(digests[0]) > 1


def test_weights_take_memory_where_they_are_touched(tmp_path: Path) -> None:
    model = nn.Linear(4096, 8192, bias=False)
    package = captured(Case(model, (torch.randn(1, 4096),), (torch.randn(1, 8192),), nn.MSELoss()))
    package.save(tmp_path / "large")
    expected = package.weights["weight"][0].clone()
    del model, package
    process = psutil.Process()
    before = process.memory_info().rss
    read = Package.load(tmp_path / "large").weights["weight"]
    assert read.nbytes == 128 * MB
    assert process.memory_info().rss - before < 16 * MB
    read[0] += 1
    assert torch.equal(read[0], expected + 1)
    assert torch.equal(Package.load(tmp_path / "large").weights["weight"][0], expected)


def test_a_saved_package_is_read_again(tmp_path: Path) -> None:
    package = captured(make("gpt_tied"))
    package.save(tmp_path / "gpt")
    read = Package.load(str(tmp_path / "gpt"))
    assert read.program == package.program
    assert all(torch.equal(read.weights[n], t) for n, t in package.weights.items())
    assert [path.name for path in tmp_path.iterdir()] == ["gpt"]
    (tmp_path / "copy").mkdir()
    read.save(tmp_path / "copy")
    assert Package.load(tmp_path / "copy").weights.keys() == package.weights.keys()


def test_nothing_is_overwritten_and_nothing_half_is_left(tmp_path: Path) -> None:
    package = captured(make("mlp"))
    package.save(tmp_path / "mlp")
    with pytest.raises(ConfigError, match="exists already"):
        package.save(tmp_path / "mlp")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="exists already"):
        package.save(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be saved"):
        package.save(tmp_path / "nowhere" / "mlp")
    case = make("mlp")
    shapes = capture_without_weights(case.model, case.inputs, loss=case.loss, example_labels=case.labels)
    with pytest.raises(CaptureError, match="without weights"):
        shapes.save(tmp_path / "shapes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mlp"]


def _first_weights(folder: Path) -> Path:
    return folder / "weights-00000.safetensors"


def _hide(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def _link(path: Path) -> None:
    _hide(path)
    path.symlink_to(path.with_name("elsewhere"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("which", ["program.json", "weights-00000.safetensors"])
@pytest.mark.parametrize(
    "change",
    [_hide, _link, _pipe, lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n(S'x'\ntR.")],
    ids=["missing", "a link", "a pipe", "a pickle"],
)
def test_a_hostile_folder_is_refused(tmp_path: Path, which: str, change: object) -> None:
    captured(make("mlp")).save(tmp_path / "mlp")
    change(tmp_path / "mlp" / which)  # type: ignore[operator]
    with pytest.raises(PackageError):
        Package.load(tmp_path / "mlp")


def test_files_that_are_no_part_of_a_package_are_not_looked_at(tmp_path: Path) -> None:
    captured(make("mlp")).save(tmp_path / "mlp")
    (tmp_path / "mlp" / "weights-00007.safetensors").write_bytes(b"nonsense")
    (tmp_path / "mlp" / "readme.txt").write_text("hello")
    Package.load(tmp_path / "mlp")
    with pytest.raises(PackageError, match="no package"):
        Package.load(tmp_path / "nowhere")
