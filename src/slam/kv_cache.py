"""Keys and values of documents that grow by a token each → attention of the new tokens to all before them.

Registered with `transformers` under the name of `CACHED`, so that a stock model runs with it: its prompts go
through the packed attention, end to end and without padding, and leave their keys and values here. Each row
has its own place in a buffer of fixed shape, so that prompts of uneven lengths need no padding either.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from slam.attention import packed_attention
from slam.errors import ConfigError

CACHED = "slam_cached"


class KVCache:
    """Of one batch: for each layer `[B, key heads, S, width]`, made when its first keys come.

    Attributes:
        lengths: tokens kept of each row, `[B]`, the one that is being computed included.
        end: no row is longer; what lies behind is not read.
        bias: added to the scores of `end` keys, `[B, 1, 1, end]`, or None where all rows are `end` long.
    """

    def __init__(self, num_rows: int, capacity: int, device: torch.device) -> None:
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._capacity = capacity
        self._filled: tuple[Tensor, Tensor] | None = None  # row and place of each token of the prompts
        self._rows = torch.arange(num_rows, device=device)
        self.lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        self.end = capacity
        self.bias: Tensor | None = None

    def expect(self, first_row: int, lengths: Sequence[int], positions: Tensor) -> None:
        """Say which rows the prompts of the next pass are, how long, and each token's place in its own."""
        sizes = torch.tensor(lengths, device=positions.device)
        rows = torch.arange(first_row, first_row + len(lengths), device=positions.device)
        self._filled = (rows.repeat_interleave(sizes, output_size=len(positions)), positions)

    def grow(self, *, end: int, even: bool) -> None:
        """Make room for a token more in each row, which must be among the first `end`."""
        self.lengths += 1
        self.end, self.bias = end, None
        if not even:
            places = torch.arange(end, device=self.lengths.device)
            behind = places >= self.lengths[:, None]
            self.bias = torch.zeros(behind.shape, device=behind.device).masked_fill(behind, -torch.inf)
            self.bias = self.bias[:, None, None]

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        for buffers in (self._keys, self._values):
            for layer, buffer in buffers.items():
                buffers[layer] = buffer[rows]
        self.lengths = self.lengths[rows]
        self._rows = self._rows[: len(rows)]

    def fill(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep the keys and values of prompts, `[1, key heads, M, width]`."""
        assert self._filled is not None  # noqa: S101 - `expect` comes first
        rows, places = self._filled
        for buffers, new in ((self._keys, key), (self._values, value)):
            if layer not in buffers:
                shape = (len(self._rows), new.shape[1], self._capacity, new.shape[3])
                buffers[layer] = new.new_zeros(shape)
            buffers[layer][rows, :, places] = new[0].transpose(0, 1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Keep the new keys and values, and attend to all of the row, `[B, heads, 1, width]`."""
        keys, values = self._keys[layer], self._values[layer]
        places = self.lengths - 1
        keys[self._rows, :, places] = key[:, :, 0]
        values[self._rows, :, places] = value[:, :, 0]
        batch, heads, _, width = query.shape
        # heads that share keys are like queries of one head
        shared = query.reshape(batch, keys.shape[1], -1, width)
        found = functional.scaled_dot_product_attention(
            shared, keys[:, :, : self.end], values[:, :, : self.end], attn_mask=self.bias, scale=scaling
        )
        return found.reshape(batch, heads, 1, width)


def cached_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kv_cache: KVCache | None = None,
    document_lengths: Sequence[int] | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention inside each document: of whole ones, or with `kv_cache` alone of a new token in each.

    Args:
        module: the attention layer.
        query: `[1, heads, M, width]`, or of new tokens `[B, heads, 1, width]`.
        key: likewise, of the key heads.
        value: likewise.
        attention_mask: unused, as in the packed attention.
        kv_cache: keeps the keys and values.
        document_lengths: tokens in each document; None for a new token in each.
        scaling: factor on the scores.
        softcap: a bound on the scores, which is refused.
        options: of the packed attention.

    Raises:
        ConfigError: the layer wants something else than causal attention inside each document.
    """
    if kv_cache is None or document_lengths is not None:
        found = packed_attention(
            module,
            query,
            key,
            value,
            attention_mask,
            document_lengths=document_lengths,
            scaling=scaling,
            softcap=softcap,
            **options,
        )
        if kv_cache is not None:
            kv_cache.fill(_number(module), key, value)
        return found
    return kv_cache.attend(_number(module), query, key, value, scaling).transpose(1, 2), None


def _number(module: torch.nn.Module) -> int:
    """Which layer it is."""
    number: Any = getattr(module, "layer_idx", None)
    if not isinstance(number, int):
        raise ConfigError(f"{type(module).__name__} does not know its number, so its keys cannot be kept")
    return number


AttentionInterface.register(CACHED, cached_attention)
