"""Real text that is on every computer with Python: the docstrings of the standard library."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))


def text(letters: int | None = None) -> str:
    """Docstrings of the standard library's modules, by name, at most so many letters of them."""
    parts: list[str] = []
    length = 0
    for name in sorted(sys.stdlib_module_names):
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None or not found.origin.endswith(".py"):
            continue
        tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                parts.append("".join(filter(ALPHABET.__contains__, ast.get_docstring(node) or "")))
                length += len(parts[-1])
        if letters is not None and length > letters:
            break
    return "\n\n".join(filter(None, parts))[:letters]


def windows(length: int, letters: int | None = None) -> Tensor:
    """The text as numbers of its letters, cut: shape (windows, length), int64."""
    number = {letter: i for i, letter in enumerate(ALPHABET)}
    numbers = torch.tensor([number[letter] for letter in text(letters)])
    return numbers[: len(numbers) // length * length].view(-1, length)


def written(numbers: Tensor) -> str:
    """The letters behind the numbers."""
    return "".join(ALPHABET[int(number)] for number in numbers)
