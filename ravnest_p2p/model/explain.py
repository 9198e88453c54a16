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
_CAUSES: tuple[tuple[str, tuple[str, str]], ...] = (
    (r"assigned during export|register_buffer", (
        "forward() assigns a tensor to an attribute",
        "register it in __init__ by register_buffer(), and write to it in place",
    )),
    (r"uninitialized|Lazy", (
        "a lazy module has no weights yet",
        "run the model once on an example before it is submitted",
    )),
    (r"aten\.(nonzero|unique\w*|_unique\w*|masked_select)|repeat_interleave|PackedSequence|pack_padded|packed", _SHAPE),
    (r"\.numpy\(\)|\.tolist\(\)|_local_scalar_dense|\.item\(\)|aten\.item|data_ptr", _VALUE),
    (r"[Dd]ata-dependent|data dependent|GuardOnDataDependent|is_nonzero|DYNAMIC_CONTROL_FLOW", _BRANCH),
    (r"[Cc]omplex", ("complex numbers cannot travel", "compute real and imaginary parts as two tensors")),
)  # fmt: skip

_UNLISTED: tuple[tuple[str, tuple[str, str]], ...] = (
    (r"nonzero|unique|masked_select|repeat_interleave", _SHAPE),
    (r"item|_local_scalar_dense|is_nonzero", _VALUE),
    (r"complex|fft|_real|_imag|polar", (
        "complex numbers cannot travel",
        "compute real and imaginary parts as two tensors (rotary embeddings by cos and sin)",
    )),
    (r"_pack_padded|_pad_packed", (
        "packed sequences have lengths that depend on tensor values",
        "pass padded sequences and mask the loss",
    )),
    (r"embedding_renorm", (
        "max_norm writes to the embedding's weight in forward()",
        "leave max_norm out; weight decay or clipping in the loss keeps it small",
    )),
)  # fmt: skip


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


def explain(error: BaseException, modules: Mapping[str, nn.Module]) -> str:
    """Module, line, cause and fix for an error that was raised inside of a model.

    Args:
        modules: by path, as `named_modules()` gives them.
    """
    where, line = _blamed(error, modules)
    text = "\n".join(f"{type(e).__name__}: {e}" for e in _chain(error))
    for pattern, (cause, fix) in _CAUSES:
        if re.search(pattern, text):
            return f"{where}: {cause}{line}; {fix}"
    return f"{where}: {brief(error)}{line}; write this part with plain tensor operations"


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
