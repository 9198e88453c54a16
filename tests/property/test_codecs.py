"""Codecs on any values and any bytes: errors within their bounds, sizes as announced, no NaN hidden."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ravnest_p2p.core import compression
from ravnest_p2p.core.errors import ChunkMismatchError, NonFiniteError
from ravnest_p2p.training.codecs import Feedback, Int4, Predicted, codec_of, predictable
from ravnest_p2p.training.codecs.int4 import EVEN, FIRST, SECOND, SPLITS, UNEVEN, half_of

NAMES = compression.CODECS[1:]
elements = st.integers(0, 200_000)


def values(count: int, exponent: float, seed: int, shape: str = "normal") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, generator=generator) * 2.0**exponent
    if shape == "outliers":
        found *= torch.where(torch.rand(count, generator=generator) < 0.01, 1e3, 1.0)
    if shape == "sparse":
        found *= torch.rand(count, generator=generator) < 0.05
    return found


def blocks_of(flat: Tensor, size: int) -> Tensor:
    padded = torch.cat([flat, flat.new_zeros(-flat.numel() % size)])
    return padded.view(-1, size).abs().amax(1).repeat_interleave(size)[: flat.numel()]


def bound(name: str, flat: Tensor) -> Tensor:
    """Largest error of each value."""
    magnitude = flat.abs()
    if name == "fp16":
        return magnitude * 2.0**-11 + blocks_of(flat, max(flat.numel(), 1)) * 2.0**-38 + 2.0**-144
    if name == "bf16":
        return magnitude * 2.0**-8 + 2.0**-133
    if name == "int8":
        return blocks_of(flat, 256) * (0.5 / 127) * 1.01 + 2.0**-120
    whole = blocks_of(flat, max(flat.numel(), 1))
    return blocks_of(flat, 32) * (0.5 / 7.33) * 1.03 + whole * 2.0**-15.5 + 2.0**-99


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES),
    elements,
    st.floats(-100, 87),
    st.sampled_from(["normal", "outliers", "sparse"]),
    st.integers(0, 99),
)
def test_errors_stay_within_their_bound(
    name: str, count: int, exponent: float, shape: str, seed: int
) -> None:
    flat = values(count, exponent, seed, shape)
    before = flat.clone()
    data = codec_of(name, seed).encode(flat)
    assert data is not None
    assert data.numel() == compression.encoded_bytes(name, count)
    found = codec_of(name).decode(data, count)
    assert torch.equal(flat, before)
    assert ((found - flat).abs() <= bound(name, flat)).all()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 100_000),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.data(),
)
def test_what_is_not_finite_is_never_encoded_as_a_number(
    name: str, count: int, wrong: float, data: st.DataObject
) -> None:
    flat = values(count, 0, 1)
    flat[data.draw(st.integers(0, count - 1))] = wrong
    assert codec_of(name).encode(flat) is None


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_floats_are_held_or_refused(name: str) -> None:
    codec, flat = codec_of(name), torch.full((2000,), torch.finfo(torch.float32).max)
    data = codec.encode(flat)
    assert data is None or torch.isfinite(codec.decode(data, 2000)).all()
    zeros = codec.encode(torch.zeros(2000))
    assert zeros is not None
    assert codec.decode(zeros, 2000).abs().max() == 0


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 3000), st.binary(max_size=600), st.integers(0, 99))
def test_any_bytes_are_decoded_or_refused_by_name(name: str, count: int, begin: bytes, seed: int) -> None:
    codec = codec_of(name)
    size = codec.nbytes(count)
    payload = torch.randint(0, 256, (size,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    head = begin[:size]
    payload[: len(head)] = torch.tensor(list(head), dtype=torch.uint8)
    try:
        found = codec.decode(payload, count)
    except NonFiniteError:
        return
    assert found.shape == (count,)
    assert found.dtype == torch.float32
    if name in ("int8", "int4"):
        assert torch.isfinite(found).all()


@given(st.sampled_from(NAMES), st.integers(0, 3000), st.integers(-100, 100).filter(bool))
def test_another_number_of_bytes_is_refused(name: str, count: int, more: int) -> None:
    codec = codec_of(name)
    with pytest.raises(ChunkMismatchError):
        codec.decode(torch.zeros(max(codec.nbytes(count) + more, 0), dtype=torch.uint8), count + (not count))


@pytest.mark.parametrize("name", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1.0, 3e38])
def test_scales_that_no_encoder_writes_are_refused(name: str, scale: float) -> None:
    codec = codec_of(name)
    payload = codec.encode(torch.randn(2000))
    assert payload is not None
    if name == "int8":
        payload[2:4].view(torch.bfloat16).fill_(scale)
    else:
        payload[:4].view(torch.float32).fill_(scale)
    with pytest.raises(NonFiniteError):
        codec.decode(payload, 2000)


def test_a_start_outside_of_the_noise_is_refused() -> None:
    codec = codec_of("int4")
    for start in (-1, 1 << 15, 2**31 - 1):
        payload = codec.encode(torch.randn(2000))
        assert payload is not None
        payload[8:12].view(torch.int32).fill_(start)
        with pytest.raises(NonFiniteError):
            codec.decode(payload, 2000)


@pytest.mark.parametrize("name", ["fp16", "bf16", "int8"])
def test_a_value_that_passes_through_several_stages_loses_once(name: str) -> None:
    codec, flat = codec_of(name), values(5000, -20, 3, "outliers")
    once = codec.decode(codec.encode(flat), 5000)  # type: ignore[arg-type]
    assert torch.equal(codec.decode(codec.encode(once), 5000), once)  # type: ignore[arg-type]


def test_four_bits_are_right_on_average() -> None:
    codec, flat = Int4(seed=1), values(4096, -25, 5)
    total = torch.zeros(4096)
    for _ in range(400):
        total += codec.decode(codec.encode(flat), 4096)  # type: ignore[arg-type]
    step = blocks_of(flat, 32) / 7.33
    single = (codec.decode(codec.encode(flat), 4096) - flat) / step  # type: ignore[arg-type]
    mean = (total / 400 - flat) / step
    assert 0.25 < single.std() < 0.32, "uniform over a step"
    assert mean.std() < 0.032, "twenty times less after four hundred"


def test_what_feedback_loses_does_not_add_up() -> None:
    codec, feedback = Int4(), Feedback(Int4())
    sent, plain, exact = torch.zeros(4096), torch.zeros(4096), torch.zeros(4096)
    for number in range(50):
        flat = values(4096, 0, number)
        exact += flat
        data = feedback.encode(flat)
        assert data is not None
        feedback.sent()
        sent += codec.decode(data, 4096)
        plain += codec.decode(codec.encode(flat), 4096)  # type: ignore[arg-type]
    step = 3.0 / 7.33
    assert (sent - exact).abs().max() < 1.5 * step
    assert (sent - exact).norm() < 0.3 * (plain - exact).norm()


def test_what_was_not_sent_is_not_owed() -> None:
    feedback, flat = Feedback(Int4()), values(4096, 0, 1)
    feedback.encode(flat)
    assert feedback.encode(torch.full((4096,), math.nan)) is None
    data = feedback.encode(torch.zeros(4096))
    assert data is not None
    assert Int4().decode(data, 4096).abs().max() == 0


@given(st.integers(1, 5000), st.sampled_from(SPLITS), st.integers(0, 99))
def test_both_halves_are_within_half_a_step_of_their_bits(count: int, split: int, seed: int) -> None:
    codec, size = Int4(seed), half_of(count)
    data = codec.blank(count, split)
    for half, bits in ((FIRST, split), (SECOND, 8 - split)):
        flat = values(size, half, seed + half)
        kept, found = flat.clone(), torch.empty(size)
        assert codec.write(data, half, kept, replace=True)
        codec.read(data, half, found)
        assert torch.equal(kept, found)
        assert ((found - flat).abs() <= blocks_of(flat, 32) / 2 / (2 ** (bits - 1) - 0.5) * 1.05).all()
    codec.check(data, count)


@pytest.mark.parametrize("split", [0, 3, 6, 8, -1, 2**30])
def test_other_numbers_of_bits_are_refused(split: int) -> None:
    with pytest.raises(NonFiniteError):
        Int4().decode(Int4().blank(2000, split), 2000)


SHAPES = [(4, 1000), (1, 4096), (16, 258), (3, 5, 14), (4, 100, 192), (8, 64, 96), (2, 130, 6, 38)]


def sent(near: Predicted, flat: Tensor) -> Tensor:
    data = near.encode(flat)
    assert data is not None
    near.sent()
    return data


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 99))
def test_both_ends_predict_the_same(shape: tuple[int, ...], seed: int) -> None:
    count = math.prod(shape)
    near, far, codec = Predicted(Int4(seed), shape), Predicted(Int4(), shape), Int4(seed)
    common = values(count // shape[0], 5, seed).expand(shape[0], -1).reshape(-1)
    for number in range(8):
        flat = common + values(count, 0, 1000 + number)
        before = flat.clone()
        if number == 3:
            assert near.encode(flat * math.nan) is None
        found = far.decode(sent(near, flat), count)
        assert torch.equal(flat, before)
    plain = codec.decode(codec.encode(flat), count)  # type: ignore[arg-type]
    assert (found - flat).norm() < 0.3 * (plain - flat).norm()


def errors(shape: tuple[int, ...], make: Callable[[int], Tensor]) -> tuple[float, int]:
    """The last tensors' error as a share of that without prediction, and bits of the last's first half."""
    count, near, far, codec = math.prod(shape), Predicted(Int4(), shape), Predicted(Int4(), shape), Int4()
    apart, plain = 0.0, 0.0
    for number in range(40):
        flat = make(number).reshape(-1)
        data = sent(near, flat)
        found = far.decode(data, count)
        if number >= 30:
            apart += float((found - flat).square().sum())
            plain += float((codec.decode(codec.encode(flat), count) - flat).square().sum())  # type: ignore[arg-type]
    return (apart / plain) ** 0.5, int(data[12])


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99))
def test_channels_that_go_together_lose_less(seed: int) -> None:
    mix = values(8 * 96, 0, seed).view(8, 96)
    share, bits = errors(
        (8, 64, 96), lambda number: values(512 * 8, 0, 1000 * seed + number).view(512, 8) @ mix
    )
    assert bits == UNEVEN
    assert share < 0.65


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99))
def test_channels_of_their_own_lose_no_more(seed: int) -> None:
    share, bits = errors((8, 64, 96), lambda number: values(512 * 96, 0, 1000 * seed + number))
    assert bits == EVEN
    assert share < 1.05


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99))
def test_values_that_reach_up_only_lose_less(seed: int) -> None:
    share, _ = errors((8, 4096), lambda number: values(8 * 4096, 0, 1000 * seed + number).relu() ** 2)
    assert share < 0.85


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([(4, 1000), (4, 80, 64)]), st.data())
def test_whatever_comes_what_is_known_stays_finite(shape: tuple[int, ...], drawn: st.DataObject) -> None:
    count, far = math.prod(shape), Predicted(Int4(), shape)
    for seed in range(12):
        data = torch.randint(0, 256, (Int4().nbytes(count),), generator=torch.Generator().manual_seed(seed))
        data = data.to(torch.uint8)
        for place in (0, 1):
            data[:8].view(torch.float32)[place] = 2.0 ** drawn.draw(st.integers(-140, 100))
        data[8:12].view(torch.int32).fill_(drawn.draw(st.integers(0, (1 << 15) - 1)))
        data[12:16].view(torch.int32).fill_(drawn.draw(st.sampled_from(SPLITS)))
        assert torch.isfinite(far.decode(data, count)).all()
    near, flat = copy.deepcopy(far), values(count, 0, 1)
    assert torch.isfinite(far.decode(sent(near, flat), count)).all()


def test_what_is_wrong_at_one_end_fades() -> None:
    shape = (8, 64, 96)
    near, far = Predicted(Int4(), shape), Predicted(Int4(), shape)
    mix = values(8 * 96, 0, 1).view(8, 96)

    def apart() -> list[float]:
        regressions = near._regression, far._regression
        assert regressions[0] is not None
        assert regressions[1] is not None
        pairs = [(near._centres, far._centres)] + [
            (getattr(regressions[0], name), getattr(regressions[1], name))
            for name in ("_coefficients", "_squares")
        ]
        return [float((a - b).norm()) for a, b in pairs]

    for number in range(200):
        flat = (values(512 * 8, 0, number).view(512, 8) @ mix).reshape(-1)
        if number == 10:
            assert far._regression is not None
            far._centres.mul_(1.001)
            far._regression._coefficients.add_(values(48 * 48, -10, 2).view(1, 48, 48))
            far._regression._squares.mul_(1.001)
            before = apart()
        far.decode(sent(near, flat), flat.numel())
    assert apart()[0] < 0.97 * before[0]
    assert apart()[1] < 0.6 * before[1]
    assert apart()[2] < 0.1 * before[2]


@pytest.mark.parametrize("shape", [(16, 257), (3, 5, 7), (4096,), (0, 8)])
def test_samples_that_cannot_be_halved_are_not_predicted(shape: tuple[int, ...]) -> None:
    assert not predictable(shape)
