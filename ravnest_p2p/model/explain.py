"""Say in the user's words why a model could not be captured: where, the cause, the fix.

Problem: `torch.export` reports symbols of its own ("Could not guard on data-dependent expression Eq(u0, 1)").
Solution: the module and the line are found in the traceback, where the user's own code stands, and the cause
by a table of the words in torch's message.
"""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

_TORCH = str(Path(torch.__file__).parent)

_BRANCH = (
    "a Python `if`, loop or assert depends on tensor values",
    "use torch.where, or compute both sides and blend them by a mask",
)
_VALUE = (
    "a tensor's value is read as a Python number (.item(), float(), .tolist(), .numpy())",
    "keep it a tensor; for a fixed number, compute it in __init__",
)
_SHAPE = (
    "a shape depends on tensor values (boolean mask, nonzero, unique, packed or ragged lengths)",
    "keep the full shape and multiply by the mask, or use torch.where",
)
_PACKED = (
    "packed sequences have lengths that depend on tensor values",
    "pass padded sequences and mask the loss",
)
_COMPLEX = (
    "complex numbers cannot travel",
    "compute real and imaginary parts as two tensors (rotary embeddings by cos and sin)",
)
_ASSIGNED = (
    "forward() assigns a tensor to an attribute",
    "register it in __init__ by register_buffer(), and write to it in place",
)
_RENORM = (
    "max_norm writes to the embedding's weight in forward()",
    "leave max_norm out; weight decay or clipping in the loss keeps it small",
)
_SPARSE = "sparse tensors and gradients cannot travel", "use dense ones (sparse=False)"
_BAG = "embedding bags trust the offsets that they are given", "use nn.Embedding and .sum(dim) or .mean(dim)"

_RAISED: tuple[tuple[str, tuple[str, str]], ...] = (
    ("assigned during export|register_buffer", _ASSIGNED),
    ("pack_padded|pad_packed|PackedSequence", _PACKED),
    (r"aten\.(_?unique|nonzero|masked_select)|repeat_interleave", _SHAPE),
    (r"\.numpy\(\)|\.tolist\(\)|_local_scalar_dense|\.item\(\)|aten\.item|data_ptr", _VALUE),
    ("[Dd]ata-dependent|data dependent|GuardOnDataDependent|is_nonzero|DYNAMIC_CONTROL_FLOW", _BRANCH),
    ("[Cc]omplex", _COMPLEX),
    ("[Ss]parse", _SPARSE),
)
"""By words in what was raised, or in the line that raised it."""

_UNLISTED: tuple[tuple[str, tuple[str, str]], ...] = (
    ("nonzero|unique|masked_select|repeat_interleave", _SHAPE),
    ("item|_local_scalar_dense|is_nonzero", _VALUE),
    ("complex|fft|_real|_imag|polar", _COMPLEX),
    ("_pack_padded|_pad_packed", _PACKED),
    ("embedding_renorm", _RENORM),
    ("embedding_bag", _BAG),
    ("sparse", _SPARSE),
)
"""By words in the name of an operation."""


def brief(error: object) -> str:
    """First line of a message, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def place(path: str, kind: str = "") -> str:
    """How messages name a module."""
    return (
        f"`{path}`" + (f" ({kind})" if kind else "") if path else "the model" + (f" ({kind})" if kind else "")
    )


def unlisted(name: str) -> tuple[str, str]:
    """Cause and fix for an operation that is not on the allow-list."""
    for pattern, found in _UNLISTED:
        if re.search(pattern, name):
            cause, fix = found
            return f"{cause} ({name} may not travel)", fix
    return (
        f"the operation {name} may not travel to other peers",
        "replace it by plain tensor operations (ravnest_p2p.model.ops lists them)",
    )


def known_cause(text: str) -> tuple[str, str] | None:
    """Cause and fix by the words of an error message, if they are known."""
    return next((found for pattern, found in _RAISED if re.search(pattern, text)), None)


def explain(error: BaseException, modules: Mapping[str, nn.Module]) -> str:
    """Module, line, cause and fix for an error that was raised inside of a model.

    Args:
        modules: by path, as `named_modules()` gives them.
    """
    where, line = _blamed(error, modules)
    text = "\n".join([line, *(f"{type(e).__name__}: {e}" for e in _chain(error))])
    cause, fix = known_cause(text) or (brief(error), "write this part with plain tensor operations")
    return f"{where}: {cause}{line}; {fix}"


def failed(error: BaseException, modules: Mapping[str, nn.Module]) -> str:
    """What to say where the model fails by itself, before anything is captured."""
    where, line = _blamed(error, modules)
    cause = f"it fails on the examples: {type(error).__name__}: {brief(error)}"
    return f"{where}: {cause}{line}; check their shapes and dtypes"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    ahead: BaseException | None = error
    while ahead is not None and id(ahead) not in seen:
        seen.add(id(ahead))
        yield ahead
        ahead = ahead.__cause__ or ahead.__context__


def _blamed(error: BaseException, modules: Mapping[str, nn.Module]) -> tuple[str, str]:
    """The innermost module in the traceback, and the last line outside of torch."""
    paths = {id(module): path for path, module in modules.items()}
    where, line = "the model", ""
    for link in reversed(list(_chain(error))):
        for frame, number in traceback.walk_tb(link.__traceback__):
            owner = frame.f_locals.get("self")
            if id(owner) in paths and frame.f_code.co_name != "_call_impl":
                where = place(paths[id(owner)], type(owner).__name__)
            name = frame.f_code.co_filename
            if not name.startswith((_TORCH, "<", str(Path(__file__).parent))):
                text = linecache.getline(name, number).strip()
                line = f" (line {number} of {Path(name).name}: `{text}`)" if text else line
        if line:
            break
    return where, line
