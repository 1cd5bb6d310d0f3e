"""Keys and values of the sequences that decode together.

Rows are right-aligned: row i occupies the last `lengths[i]` columns, so that a decode step writes one column for all
rows at once and distances between tokens, which sliding windows count, are those of the columns. Rows join and leave
between steps; columns grow inside a buffer with room to spare, since `torch.cat` for each token would copy everything.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_SPARE = 128
"""Columns added when the buffer is full."""


class _Layer(DynamicLayer):
    """Keys and values of one layer, views [rows, heads, columns, head_dim] into buffers with more columns.

    A layer with a sliding window keeps all columns too: the model masks what is out of the window.
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._end = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append columns; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.set(key_states, value_states)
            return self.keys, self.values
        start, new = self._end, key_states.shape[-2]
        if self._buffers is None or start + new > self._buffers[0].shape[-2]:
            self._buffers = (_roomy(self.keys, new), _roomy(self.values, new))
            start = self.keys.shape[-2]
        first = start - self.keys.shape[-2]
        self._end = start + new
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self._end] = states
        self.keys, self.values = (buffer[:, :, first : self._end] for buffer in self._buffers)
        return self.keys, self.values

    def set(self, keys: Tensor, values: Tensor) -> None:
        """Replace all rows and columns."""
        self.keys, self.values = keys, values
        self._buffers, self._end = None, 0


class Kv(Cache):
    """A transformers cache whose rows join and leave. `lengths[i]` is the number of tokens of row i."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Layer)
        self.layers: list[_Layer]  # type: ignore[assignment] # narrower than the list of all kinds
        self.lengths: list[int] = []

    def mask_BT(self, new: int = 1) -> Tensor | None:
        """Which columns are real, once `new` more are appended to each row; None where all are."""
        longest = max(self.lengths)
        if min(self.lengths) == longest:
            return None
        length_B1 = torch.tensor(self.lengths)[:, None]
        return torch.arange(longest + new)[None, :] >= longest - length_B1

    def beginning(self, tokens: int) -> Kv:
        """The first tokens of a cache of one row, as a cache of their own. Nothing is copied until either grows, and then what
        the other holds stays as it is."""
        made = Kv()
        for layer in self.layers:
            mine = _Layer()
            mine.lazy_initialization(layer.keys, layer.values)
            mine.set(layer.keys[:, :, :tokens], layer.values[:, :, :tokens])
            made.layers.append(mine)
        made.lengths = [tokens]
        return made

    def join(self, other: Kv) -> None:
        """Append the rows of `other`, which is not to be used afterwards. Where memory runs out, nothing has changed."""
        columns = max([*self.lengths, *other.lengths])
        if self.layers:
            joined = [
                (_stack(mine.keys, theirs.keys, columns=columns), _stack(mine.values, theirs.values, columns=columns))
                for mine, theirs in zip(self.layers, other.layers, strict=True)
            ]
            for layer, (keys, values) in zip(self.layers, joined, strict=True):
                layer.set(keys, values)
        else:
            self.layers = other.layers
        self.lengths = [*self.lengths, *other.lengths]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and the columns that only they used."""
        self.lengths = [self.lengths[row] for row in rows]
        if not rows:
            self.layers = []
            return
        columns = max(self.lengths)
        for layer in self.layers:
            layer.set(layer.keys[rows, :, -columns:], layer.values[rows, :, -columns:])


def cache_argument(model: torch.nn.Module) -> str:
    """What this model's passes call their cache: transformers renamed it in 5.24, where the older name warns."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _roomy(x_BHTD: Tensor, new: int) -> Tensor:
    B, H, T, D = x_BHTD.shape
    buffer = x_BHTD.new_empty(B, H, T + new + _SPARE, D)
    buffer[:, :, :T] = x_BHTD
    return buffer


def _stack(*rows_BHTD: Tensor, columns: int) -> Tensor:
    """Rows one after the other, right-aligned. What is left of them is zero and not empty: masked NaN poisons a sum too."""
    return torch.cat([torch.nn.functional.pad(x_BHTD, (0, 0, columns - x_BHTD.shape[-2], 0)) for x_BHTD in rows_BHTD])
