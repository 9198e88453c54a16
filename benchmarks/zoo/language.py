"""Transformers of Hugging Face, made from a small config without any download."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.case import Case

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS, WIDTH, DEPTH, HEADS, LENGTH = 96, 48, 4, 4, 16


class WithLoss(nn.Module):
    """Calls a Hugging Face model by argument names; it returns its loss, and logits and more beside it."""

    def __init__(self, model: nn.Module, *fields: str) -> None:
        super().__init__()
        self.model = model
        self.fields = fields

    def forward(self, *tensors: Tensor) -> Any:
        return self.model(**dict(zip(self.fields, tensors, strict=True)), return_dict=True)


def _tokens(batch: int = 4) -> tuple[Tensor, Tensor]:
    """Token ids, and a mask of the last four positions of the first sample."""
    mask = torch.ones(batch, LENGTH, dtype=torch.long)
    mask[0, -4:] = 0
    return torch.randint(2, WORDS, (batch, LENGTH)), mask


def _bert(**options: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=32,
        **options,
    )


def bert_classification() -> Case:
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(_bert(num_labels=3))
    fields = "input_ids", "attention_mask", "labels"
    return Case(WithLoss(model, *fields), _tokens(), (torch.randint(3, (4,)),))


def bert_mlm(tied: bool = True) -> Case:
    from transformers import BertForMaskedLM

    tokens, mask = _tokens()
    labels = torch.where(torch.rand(tokens.shape) < 0.3, tokens, -100)
    labels[:, 0] = tokens[:, 0]
    model = BertForMaskedLM(_bert(tie_word_embeddings=tied))
    fields = "input_ids", "attention_mask", "labels"
    return Case(WithLoss(model, *fields), (torch.where(labels >= 0, 1, tokens), mask), (labels,))


def _causal(model: nn.Module) -> Case:
    tokens, mask = _tokens()
    labels = torch.where(mask == 1, tokens, -100)
    return Case(WithLoss(model, "input_ids", "attention_mask", "labels"), (tokens, mask), (labels,))


def gpt2(tied: bool = True) -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=32,
        n_embd=WIDTH,
        n_layer=DEPTH,
        n_head=HEADS,
        use_cache=False,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _causal(GPT2LMHeadModel(config))


_DECODER: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    return _causal(LlamaForCausalLM(LlamaConfig(**_DECODER)))


def qwen2() -> Case:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return _causal(Qwen2ForCausalLM(Qwen2Config(**_DECODER)))


def qwen3() -> Case:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return _causal(Qwen3ForCausalLM(Qwen3Config(**_DECODER, head_dim=16)))


def t5(tied: bool = True) -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=WORDS,
        d_model=WIDTH,
        d_kv=12,
        d_ff=4 * WIDTH,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=HEADS,
        use_cache=False,
        decoder_start_token_id=0,
    )
    tokens, mask = _tokens()
    labels = torch.randint(2, WORDS, (4, 8))
    labels[1, -2:] = -100
    model = T5ForConditionalGeneration(config)
    if not tied:
        model.decoder.embed_tokens = copy.deepcopy(model.decoder.embed_tokens)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return Case(WithLoss(model, "input_ids", "attention_mask", "labels"), (tokens, mask), (labels,))


def vit() -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    model = WithLoss(ViTForImageClassification(config), "pixel_values", "labels")
    return Case(model, (torch.randn(4, 3, 32, 32),), (torch.randint(10, (4,)),))
