"""Queries, keys and values of documents laid end to end → attention in which none of them sees another.

Registered with `transformers` under the name of `PACKED`, so that a stock model runs with it. On CUDA torch's
kernel of variable lengths computes it; elsewhere each document, or run of equally long ones, by itself.
"""

from collections.abc import Sequence
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import varlen
from transformers import AttentionInterface

from slam.errors import ConfigError

PACKED = "slam_packed"
_VARLEN_PARAMETERS = frozenset(signature(varlen.varlen_attn).parameters)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - part of transformers' signature
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    document_lengths: Sequence[int] | None = None,
    document_starts: Tensor | None = None,
    longest_document: int | None = None,
    shared_tokens: Sequence[int] = (),
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,  # what other backends want to know and what does not change the scores
) -> tuple[Tensor, None]:
    """Causal attention inside each document, by torch's fused kernels.

    With `document_starts` one kernel takes them all (CUDA, bf16); else each is attended to by itself, those
    of one length together.

    Args:
        module: the attention layer.
        query: `[1, heads, M, width]`.
        key: `[1, key heads, M, width]`.
        value: `[1, key heads, M, width]`.
        attention_mask: unused; the documents' lengths say it all.
        scaling: factor on the scores.
        dropout: on the attention weights.
        document_lengths: tokens in each document, M in all.
        document_starts: where documents start, `[D + 1]` int32, for the kernel of variable lengths.
        longest_document: tokens in the longest of them, with `document_starts`.
        shared_tokens: for each document, first tokens of the one before that it attends to as well.
        sliding_window: tokens that a layer may look back over; harmless while no document is longer.
        softcap: a bound on the scores, which the fused kernels do not know.

    Returns:
        `([1, M, heads, width], None)`, as `transformers` wants it.

    Raises:
        ConfigError: the layer wants something else than causal attention inside each document.
    """
    layer = type(module).__name__
    if document_lengths is None and document_starts is None:
        raise ConfigError(
            f"{layer} does not hand document lengths on, so packing cannot keep documents apart"
        )
    if softcap is not None:
        raise ConfigError(f"{layer} caps its attention scores, which packed training does not support")
    longest = longest_document or max(document_lengths or (0,))
    if sliding_window is not None and longest > sliding_window:
        raise ConfigError(
            f"a document of {longest} tokens is longer than the window of {sliding_window} that {layer} "
            "attends in; use a shorter context"
        )
    if document_starts is not None:
        parts = [part[0].transpose(0, 1) for part in (query, key, value)]
        return _varlen(parts, document_starts, longest, scaling)[None], None
    if any(shared_tokens):
        return _attend_branches((query, key, value), document_lengths or (), shared_tokens, scaling), None
    runs = _runs(document_lengths or (), query.shape[2])
    sizes = [length * times for length, times in runs]
    split = zip(*(torch.split(part, sizes, 2) for part in (query, key, value)), strict=True)
    outputs = [_attend(some, times, scaling, dropout) for (_, times), some in zip(runs, split, strict=True)]
    return torch.cat(outputs, dim=1), None


def _runs(lengths: Sequence[int], total: int) -> list[tuple[int, int]]:
    """`(length, how many documents of that length in a row)`; tokens past the last document are one more."""
    filler = total - sum(lengths)
    return [(length, len(list(some))) for length, some in groupby((*lengths, filler) if filler else lengths)]


def _attend(parts: Sequence[Tensor], times: int, scaling: float | None, dropout: float) -> Tensor:
    """Causal attention of `times` documents of one length, `[1, heads, times · n, width]`."""
    query, key, value = (
        part.view(part.shape[1], times, -1, part.shape[-1]).transpose(0, 1) for part in parts
    )
    found = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found.transpose(1, 2).flatten(0, 1)[None]


def _attend_branches(
    parts: Sequence[Tensor], lengths: Sequence[int], shared: Sequence[int], scaling: float | None
) -> Tensor:
    """Causal attention of each document, some of which go on from first tokens of the one before."""
    grouped = parts[0].shape[1] != parts[1].shape[1]
    outputs, before = [], None
    for query, key, value, prefix in zip(
        *(torch.split(p, list(lengths), 2) for p in parts), shared, strict=True
    ):
        mask = None
        keys, values = key, value
        if prefix and before is not None:
            keys, values = (
                torch.cat([b[:, :, :prefix], own], 2) for b, own in zip(before, (key, value), strict=True)
            )
            size = query.shape[2]
            mask = torch.ones(size, prefix + size, dtype=torch.bool, device=query.device).tril(prefix)
        found = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        outputs.append(found.transpose(1, 2))
        before = (key, value)
    return torch.cat(outputs, dim=1)


def _varlen(parts: Sequence[Tensor], starts: Tensor, longest: int, scaling: float | None) -> Tensor:
    """Torch's kernel of variable lengths, `[M, heads, width]`; its signature moved between 2.10 and 2.13."""
    query, key, value = parts
    query, key = query.to(value.dtype), key.to(value.dtype)  # Qwen3's norms leave them in fp32 under autocast
    known = _VARLEN_PARAMETERS
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if scaling is not None and "scale" in known:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)  # torch 2.10 has 1 / √width alone
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    found: Any = varlen.varlen_attn(query, key, value, starts, starts, longest, longest, **options)
    output: Tensor = found
    return output


AttentionInterface.register(PACKED, packed_attention)
