"""Layers with habits: recurrent, packed, normed, parametrized, shared, lazy and compiled ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, rnn

from benchmarks.zoo.case import Case
from benchmarks.zoo.odd.base import WIDTH, Odd, case, wrapped


class Recurrent(Odd):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def middle(self, h: Tensor) -> Tensor:
        outputs, last = self.layer(h.view(4, 4, 2))
        last = last[0] if isinstance(last, tuple) else last
        return outputs.reshape(4, -1)[:, :WIDTH] + last.sum()


class Packed(Recurrent):
    def middle(self, h: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(h.view(4, 4, 2), torch.tensor([4, 3, 2, 1]), batch_first=True)
        outputs, _ = rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=4)
        return outputs.reshape(4, -1)[:, :WIDTH]


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class Attention(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 2, dropout=0.1, batch_first=True)
        self.need_weights = need_weights

    def forward(self, h: Tensor) -> Tensor:
        x = h.view(4, 4, 2)
        mask = nn.Transformer.generate_square_subsequent_mask(4)
        return self.attention(x, x, x, attn_mask=mask, need_weights=self.need_weights)[0].reshape(4, -1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(2, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.encoder(h.view(4, 4, 2)).reshape(4, -1)


class Twice(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    def middle(self, h: Tensor) -> Tensor:
        for _ in range(2):
            h = self.norm(self.shared(h)).relu()
        return h


class Table(Odd):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.table = nn.Embedding(9, WIDTH, **options)  # type: ignore[arg-type]

    def middle(self, h: Tensor) -> Tensor:
        return h + self.table((h * 2).long().clamp(0, 8)).sum(1)


class Bag(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(9, WIDTH, mode="mean")

    def middle(self, h: Tensor) -> Tensor:
        return h + self.table((h * 2).long().clamp(0, 8))


def compiled() -> Case:
    return case(torch.compile(Twice(), backend="eager"))  # type: ignore[arg-type]


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH))


def symmetric() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


CASES: dict[str, Callable[[], Case]] = {
    "lstm_bidirectional_three_layers": lambda: case(
        Recurrent(nn.LSTM(2, 4, 3, dropout=0.3, bidirectional=True, batch_first=True))
    ),
    "gru_two_layers": lambda: case(Recurrent(nn.GRU(2, 4, 2, batch_first=True, bias=False))),
    "rnn_relu": lambda: case(Recurrent(nn.RNN(2, 4, 1, nonlinearity="relu"))),
    "lstm_cell": wrapped(lambda: _Cell(nn.LSTMCell(2, WIDTH))),
    "gru_cell": wrapped(lambda: _Cell(nn.GRUCell(2, WIDTH))),
    "lstm_projected": lambda: case(Recurrent(nn.LSTM(2, 8, proj_size=4))),
    "lstm_packed": lambda: case(Packed(nn.LSTM(2, 4, batch_first=True))),
    "spectral_norm": wrapped(lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))),
    "spectral_norm_old": wrapped(lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH))),
    "weight_norm": wrapped(lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "weight_norm_old": wrapped(old_weight_norm),
    "parametrized_symmetric": wrapped(symmetric),
    "parametrized_orthogonal": wrapped(lambda: parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH))),
    "multihead_attention": wrapped(lambda: Attention(need_weights=False)),
    "multihead_attention_weights": wrapped(lambda: Attention(need_weights=True)),
    "transformer_encoder": wrapped(Encoder),
    "module_called_twice": lambda: case(Twice()),
    "compiled_module": compiled,
    "lazy_linear": wrapped(lambda: nn.LazyLinear(WIDTH)),
    "embedding_padding": lambda: case(Table(padding_idx=0)),
    "embedding_max_norm": lambda: case(Table(max_norm=1.0)),
    "embedding_sparse": lambda: case(Table(sparse=True)),
    "embedding_bag": lambda: case(Bag()),
    "instance_norm_tracking": wrapped(lambda: _Instance()),
}


class _Cell(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, h: Tensor) -> Tensor:
        state = None
        for part in h.view(4, 4, 2).unbind(1):
            state = self.cell(part, state)
        return state[0] if isinstance(state, tuple) else state


class _Instance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(h.view(4, 2, 4)).reshape(4, -1)
