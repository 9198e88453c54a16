"""The model zoo: 18 architectures that people train, at small size, built from nothing but code.

`ARCHITECTURES` has one maker for each; `make(name, seed)` draws its weights and examples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.zoo import classic, language, sequence, vision
from benchmarks.zoo.case import Case

__all__ = ["ARCHITECTURES", "UNTIED", "Case", "make"]

ARCHITECTURES: dict[str, Callable[[], Case]] = {
    "cnn": classic.cnn,
    "resnet50": vision.resnet50,
    "inception_v3": vision.inception_v3,
    "bert_classification": language.bert_classification,
    "bert_mlm": language.bert_mlm,
    "gpt2": language.gpt2,
    "llama": language.llama,
    "qwen2": language.qwen2,
    "qwen3": language.qwen3,
    "gpt_sorter": sequence.gpt_sorter,
    "t5": language.t5,
    "vit": language.vit,
    "convnext": vision.convnext,
    "densenet121": vision.densenet121,
    "mobilenet_v3": vision.mobilenet_v3,
    "unet": vision.unet,
    "lstm": sequence.lstm,
    "tied_autoencoder": classic.tied_autoencoder,
}

UNTIED: dict[str, Callable[[], Case]] = {
    "bert_mlm_untied": lambda: language.bert_mlm(tied=False),
    "gpt2_untied": lambda: language.gpt2(tied=False),
    "t5_untied": lambda: language.t5(tied=False),
}
"""The same with a head of its own, since a tied weight keeps its layers on one stage."""


def make(name: str, seed: int = 0) -> Case:
    """The architecture with that name.

    Raises:
        ImportError: it comes from `transformers`, which is not installed (extra `bench`).
    """
    torch.manual_seed(seed)
    made = (ARCHITECTURES | UNTIED)[name]()
    made.model.train()
    return made
