"""The frozen set of ATen operations that a travelling model may use.

Problem: a stranger's program runs on this machine, so "any torch operation" is far too much: some read
files, some show uninitialised memory, some trust their arguments and write outside of their tensors.
Solution: a fixed list of operations by full name. Left out on purpose: everything that allocates without
filling (`empty`), re-interprets memory (`as_strided`, `view.dtype`, `set_`, `resize_`), has shapes that
depend on data (`nonzero`, `masked_select`), parses text (`einsum`), or checks its arguments badly
(`lstm.input`; `model.checked` has a stand-in that checks them).
"""

from __future__ import annotations

from functools import cache

import torch

from ravnest_p2p.model.checked import CHECKED_OPS, CheckedOp

_ELEMENTWISE = """
abs.default acos.default acosh.default add.Scalar add.Tensor addcdiv.default addcmul.default asin.default
asinh.default atan.default atan2.default atanh.default bitwise_and.Scalar bitwise_and.Tensor
bitwise_not.default bitwise_or.Scalar bitwise_or.Tensor bitwise_xor.Scalar bitwise_xor.Tensor ceil.default
celu.default clamp.default clamp.Tensor clamp_max.default clamp_min.default cos.default cosh.default
div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode elu.default eq.Scalar eq.Tensor erf.default
erfc.default erfinv.default exp.default exp2.default expm1.default floor.default floor_divide.default
floor_divide.Scalar fmod.Scalar fmod.Tensor frac.default ge.Scalar ge.Tensor gelu.default glu.default
gt.Scalar gt.Tensor hardshrink.default hardsigmoid.default hardswish.default hardtanh.default
isfinite.default isinf.default isnan.default le.Scalar le.Tensor leaky_relu.default lerp.Scalar lerp.Tensor
lgamma.default log.default log10.default log1p.default log2.default log_sigmoid.default logaddexp.default
logical_and.default logical_not.default logit.default logical_or.default logical_xor.default lt.Scalar
lt.Tensor masked_fill.Scalar masked_fill.Tensor maximum.default minimum.default mish.default mul.Scalar
mul.Tensor nan_to_num.default ne.Scalar ne.Tensor neg.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor
prelu.default reciprocal.default relu.default relu6.default remainder.Scalar remainder.Tensor round.default
rsqrt.default rsub.Scalar rsub.Tensor selu.default sigmoid.default sign.default silu.default sin.default
sinh.default softplus.default softshrink.default sqrt.default square.default sub.Scalar sub.Tensor
tan.default tanh.default threshold.default trunc.default where.ScalarOther where.ScalarSelf where.Scalar
where.self xlogy.Tensor
"""

_SHAPES = """
alias.default broadcast_tensors.default broadcast_to.default cat.default chunk.default clone.default
constant_pad_nd.default contiguous.default detach.default diagonal.default expand.default expand_as.default
flatten.using_ints flip.default movedim.int movedim.intlist narrow.default numpy_T.default pad.default
permute.default pixel_shuffle.default pixel_unshuffle.default repeat.default repeat_interleave.self_int
reshape.default roll.default select.int select_scatter.default slice.Tensor slice_scatter.default
split.Tensor split.sizes split_with_sizes.default squeeze.default squeeze.dim squeeze.dims stack.default
swapaxes.default t.default tile.default to.dtype transpose.int tril.default triu.default type_as.default
unbind.int unflatten.int unsqueeze.default view.default view_as.default
"""

_SOURCES = """
arange.default arange.start arange.start_step eye.default eye.m full.default full_like.default
linspace.default new_full.default new_ones.default new_zeros.default ones.default ones_like.default
scalar_tensor.default zeros.default zeros_like.default
"""

_REDUCTIONS = """
all.default all.dim amax.default amin.default any.default any.dim argmax.default argmin.default
argsort.default cumprod.default cumsum.default linalg_vector_norm.default logcumsumexp.default
logsumexp.default max.default max.dim max.other mean.default mean.dim median.default min.default min.dim
min.other norm.Scalar norm.ScalarOpt_dim prod.default prod.dim_int sort.default std.correction std.default
std.dim sum.default sum.dim_IntList topk.default var.correction var.default var.dim
"""

_INDEXING = """
embedding.default gather.default index.Tensor index_put.default index_select.default one_hot.default
scatter.src scatter.value scatter_add.default take_along_dim.default
"""

_LAYERS = """
adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_max_pool2d.default addbmm.default
addmm.default avg_pool1d.default avg_pool2d.default baddbmm.default batch_norm.default bmm.default
conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding
conv_transpose1d.default conv_transpose2d.input cosine_similarity.default dot.default group_norm.default
instance_norm.default layer_norm.default linear.default log_softmax.int matmul.default max_pool1d.default
max_pool2d.default mm.default mv.default outer.default rms_norm.default scaled_dot_product_attention.default
softmax.int upsample_bicubic2d.vec upsample_bilinear2d.vec upsample_nearest2d.vec
"""

_LOSSES = """
binary_cross_entropy.default binary_cross_entropy_with_logits.default cosine_embedding_loss.default
cross_entropy_loss.default hinge_embedding_loss.default huber_loss.default kl_div.default l1_loss.default
margin_ranking_loss.default mse_loss.default nll_loss_nd.default poisson_nll_loss.default
smooth_l1_loss.default soft_margin_loss.default triplet_margin_loss.default
"""

_RANDOM = """
alpha_dropout.default bernoulli.default bernoulli.p dropout.default exponential.default
feature_alpha_dropout.default
feature_dropout.default rand.default rand_like.default randint.default randint.low randn.default
randn_like.default rrelu.default scaled_dot_product_attention.default uniform.default
"""

_MUTATING = """
add_.Scalar add_.Tensor copy_.default div_.Scalar div_.Tensor fill_.Scalar lerp_.Scalar mul_.Scalar
mul_.Tensor sub_.Tensor zero_.default
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in text.split())


RANDOM_OPS = _names(_RANDOM)
"""Draw from the generator; seeded by node before each call."""

DROPOUT_OPS = _names(
    "alpha_dropout.default dropout.default feature_alpha_dropout.default feature_dropout.default"
)
"""Give their input itself where their last argument, `train`, is False."""

LOSS_OPS = _names(_LOSSES)

MUTATING_OPS = _names(_MUTATING)
"""Write to their first argument, which has to be a buffer; they define no slot."""

FACTORY_OPS = _names(_SOURCES) - _names("full_like.default ones_like.default zeros_like.default") | _names(
    "rand.default randint.default randint.low randn.default"
)
"""Make a tensor from nothing, so the runner tells them the device."""

ALLOWED_OPS = (
    _names(_ELEMENTWISE + _SHAPES + _SOURCES + _REDUCTIONS + _INDEXING + _LAYERS + _LOSSES)
    | RANDOM_OPS
    | MUTATING_OPS
    | CHECKED_OPS.keys()
)

SCALAR_OPERAND_OPS = _names(_ELEMENTWISE + _MUTATING)
"""Take a plain number for a tensor, save as first argument (x * 2 is mul.Tensor)."""

STATISTICS_ARGS = {"aten.batch_norm.default": (3, 4), "aten.instance_norm.default": (3, 4)}
"""Arguments that an operation updates in place although its schema does not say so: buffers or nothing."""

STATISTICS_FLAG = 5
"""Their argument that says whether they do."""

STRINGS = frozenset(
    {"none", "tanh", "same", "valid", "constant", "reflect", "replicate", "circular"}
) | frozenset({"floor", "trunc", "mean", "sum", "linear", "bilinear", "ij", "xy"})
"""All text that may stand in an argument."""

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}

MEMORY_FORMATS: dict[str, torch.memory_format] = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
}


@cache
def resolve(name: str) -> torch._ops.OpOverload | CheckedOp:
    """The operation of an allowed name.

    Raises:
        KeyError: the name is not on the list, or this torch does not have it.
    """
    if name not in ALLOWED_OPS:
        raise KeyError(name)
    if name in CHECKED_OPS:
        return CHECKED_OPS[name]
    _, packet, overload = name.split(".")
    try:
        op: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, packet), overload)
    except AttributeError as error:
        raise KeyError(name) from error
    return op


def dtype_name(dtype: torch.dtype) -> str:
    """Text of a torch dtype without prefix, such as "float32"."""
    return str(dtype).removeprefix("torch.")
