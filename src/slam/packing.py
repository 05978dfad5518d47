"""Documents laid end to end through a stock causal LM: no padding, and none sees another.

Nothing of `transformers` is subclassed: the stock model runs with the attention of `slam.attention`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from slam.attention import PACKED
from slam.errors import ConfigError, InputError
from slam.units import Ids

_IGNORED = -100  # the target that cross-entropy leaves out
_PACKING_TOLERANCE = 1e-2  # of the scores' spread: above TF32's rounding, below any leak seen
_CHOOSE = "choose another base, such as a Qwen, Llama, Pythia, OPT or GPT-2"


@dataclass(frozen=True, kw_only=True)
class Fill:
    """One shape for every row, which a compiled graph needs: filled up with what is never trained on."""

    num_tokens: int  # in a row
    num_documents: int  # at most, filler included
    longest: int  # tokens in a document, at most


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Documents end to end: one row, no padding between them."""

    tokens: Tensor  # [1, M] int64
    positions: Tensor  # [1, M], counted from 0 in each document
    targets: Tensor  # [M], the next token of the same document; -100 at its end and on filler
    lengths: tuple[int, ...]  # [D] tokens in each document; filler is in none
    starts: Tensor | None = None  # [D' + 1] int32, where documents start; what lies past the last is empty
    longest: int = 0  # tokens in a document, at most; with `starts`
    shared: tuple[int, ...] = ()  # [D] first tokens of the document before that each goes on from

    @property
    def num_tokens(self) -> int:
        """Tokens in all, without filler; shared ones count in each document that has them."""
        return sum(self.lengths) + sum(self.shared)

    @property
    def weight(self) -> int:
        """Tokens predicted: all but each document's first."""
        return sum(self.lengths) - len(self.lengths)


def packed(
    documents: Sequence[Ids],
    device: torch.device | str = "cpu",
    fill: Fill | None = None,
    shared: Sequence[int] = (),
) -> Packed:
    """Lay documents of tokens end to end.

    Args:
        documents: each `[N]`; there may be none, for a process that has nothing to add to a batch.
        device: where the row goes; from the CPU to an accelerator without waiting.
        fill: the shape to fill the row up to, with documents of token 0 that predict nothing.
        shared: for each document, how many first tokens of the one before also begin it: its positions count
            on from there and it attends to them, so that two continuations of a prompt need it but once.

    Raises:
        ValueError: the documents do not fit into `fill`.
    """
    lengths = [len(document) for document in documents]
    parts = [document.astype(np.int64) for document in documents]
    starts = None
    padding = [] if lengths else [2]
    if fill is not None:
        left = fill.num_tokens - sum(lengths)
        padding = (
            [min(fill.longest, left - begin) for begin in range(0, left, fill.longest)] if left > 0 else []
        )
        ends = np.cumsum([0, *lengths, *padding], dtype=np.int32)
        if left < 0 or len(ends) > fill.num_documents + 1 or max(lengths, default=0) > fill.longest:
            raise ValueError(f"{len(lengths)} documents of {sum(lengths)} tokens do not fit into {fill}")
        starts = torch.from_numpy(np.pad(ends, (0, fill.num_documents + 1 - len(ends)), mode="edge"))
    flat = np.concatenate([*parts, np.zeros(sum(padding), np.int64)])
    targets = np.append(flat[1:], _IGNORED)
    targets[np.cumsum(lengths, dtype=np.int64) - 1] = _IGNORED
    targets[sum(lengths) :] = _IGNORED
    firsts = (*(shared or (0,) * len(lengths)), *(0,) * len(padding))
    sizes = (*lengths, *padding)
    positions = np.concatenate([np.arange(f, f + n) for f, n in zip(firsts, sizes, strict=True)])
    return Packed(
        tokens=_sent(torch.from_numpy(flat)[None], device),
        positions=_sent(torch.from_numpy(positions)[None], device),
        targets=_sent(torch.from_numpy(targets), device),
        lengths=tuple(lengths),
        starts=_sent(starts, device) if starts is not None else None,
        longest=fill.longest if fill is not None else 0,
        shared=tuple(shared),
    )


def _sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """To the device; to a CUDA one by pinned memory, so that the CPU goes on meanwhile."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def logits(lm: PreTrainedModel, batch: Packed) -> Tensor:
    """Next-token scores `[M, V]` of packed documents; lm must use the packed attention (`use_packed`)."""
    about: dict[str, Any] = {"document_lengths": batch.lengths, "shared_tokens": batch.shared}
    if batch.starts is not None:
        about = {"document_starts": batch.starts, "longest_document": batch.longest}
    output = lm(input_ids=batch.tokens, position_ids=batch.positions, use_cache=False, **about)
    scores: Tensor = output.logits[0]
    return scores


def use_packed(lm: PreTrainedModel) -> None:
    """Let `lm` attend inside packed documents, and try it: each must score as it does alone.

    A family that ignores positions or document lengths, or attends in another way, would not fail but give
    wrong numbers; a few tokens show it.

    Raises:
        ConfigError: the model's family cannot be packed.
        InputError: its weights are broken.
    """
    family = type(lm).__name__
    # under bf16 products the residual stream would otherwise be fp32 all the way
    lm.get_input_embeddings().register_forward_hook(_in_bf16)
    # families name the attention of their layers under either of two names
    kinds = [
        *(getattr(lm.config, "layer_types", None) or ()),
        *(getattr(lm.config, "attention_layers", None) or ()),
    ]
    if {"local", "chunked_attention", "linear_attention"} & set(kinds):
        raise ConfigError(f"{family} does not attend to the whole of a document; {_CHOOSE}")
    size = lm.config.vocab_size
    documents = [np.arange(start, start + length) * 7 % size for start, length in ((3, 6), (11, 3), (5, 9))]
    training = lm.training
    lm.train(mode=False)
    try:
        with torch.no_grad():
            lm.set_attn_implementation("eager")
            alone = [
                lm(input_ids=torch.from_numpy(one)[None].to(lm.device), use_cache=False).logits[0]
                for one in documents
            ]
            lm.set_attn_implementation(PACKED)
            together = logits(lm, packed(documents, lm.device))
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{family} cannot be packed ({str(error).strip().splitlines()[0]}); {_CHOOSE}"
        ) from None
    lm.train(training)
    expected = torch.cat(alone)
    if not expected.isfinite().all():
        raise InputError(
            f"{lm.name_or_path or family}: its scores are not numbers, so its weights are broken"
        )
    if (together - expected).abs().max() > _PACKING_TOLERANCE * expected.std():
        raise ConfigError(f"{family} scores packed documents otherwise than single ones; {_CHOOSE}")


def _in_bf16(_: torch.nn.Module, __: object, found: Tensor) -> Tensor:
    """Embeddings in the precision of products, where that is lower."""
    kind = found.device.type
    lowered = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return found.to(torch.bfloat16) if lowered else found


def token_log_likelihoods(lm: PreTrainedModel, batch: Packed) -> Tensor:
    """Log-probability of each next token given those before it, `[M]` fp32; 0 where nothing is predicted."""
    return -functional.cross_entropy(
        logits(lm, batch).float(), batch.targets, ignore_index=_IGNORED, reduction="none"
    )


def document_sums(values: Tensor, lengths: Sequence[int], skipped: Sequence[int] | None = None) -> Tensor:
    """Sum `values` `[M]` over each document, `[D]`, from its target `skipped` on."""
    values = values[: sum(lengths)]  # filler belongs to none
    sizes = torch.tensor(lengths, dtype=torch.long)  # of a row without documents, too
    owner = torch.repeat_interleave(sizes)
    if skipped is not None:
        first = sizes.cumsum(0) - sizes + torch.tensor(skipped, dtype=torch.long)  # that counts
        values = values * (torch.arange(len(owner)) >= first[owner]).to(values.device)
    owner = owner.to(values.device)
    return torch.zeros(len(lengths), device=values.device, dtype=values.dtype).index_add(0, owner, values)


def by_length(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Numbers of documents, longest first, in groups of at most `most_tokens` tokens."""
    group: list[int] = []
    total = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if group and total + lengths[index] > most_tokens:
            yield group
            group, total = [], 0
        group.append(index)
        total += lengths[index]
    if group:
        yield group


def check_length(lm: PreTrainedModel, num_tokens: int) -> None:
    """Refuse what a model with a table of positions has no positions for; rotary positions have no end.

    Raises:
        InputError: the document is longer than the table.
    """
    longest = getattr(lm.config, "max_position_embeddings", None)
    rotary = any(name.endswith("inv_freq") for name, _ in lm.named_buffers())
    if longest is not None and num_tokens > longest and not rotary:
        raise InputError(
            f"a document of {num_tokens} tokens is longer than the {longest} positions that "
            f"{lm.name_or_path or type(lm).__name__} has; shorten it, or choose a base with rotary positions"
        )


@torch.no_grad()
def log_likelihoods(
    lm: PreTrainedModel,
    documents: Sequence[Ids],
    *,
    skipped: Sequence[int] | None = None,
    most_tokens: int = 8192,
    poll: Callable[[], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed log-likelihood of each document and how many tokens were predicted.

    Args:
        lm: a model that uses the packed attention.
        documents: tokens of each document, boundaries included.
        skipped: targets at each document's start that do not count (a prompt), or None for none.
        most_tokens: in one forward pass.
        poll: called between passes; it may raise to give up.

    Returns:
        `(sums [D] float64 in nats, counts [D])`.

    Raises:
        InputError: a document is longer than the model has positions for.
    """
    device = lm.device
    check_length(lm, max(map(len, documents), default=0))
    sums, counts = np.zeros(len(documents)), np.zeros(len(documents), np.int64)
    training = lm.training
    lm.train(mode=False)
    try:
        for group in by_length([len(document) for document in documents], most_tokens):
            if poll is not None:
                poll()
            batch = packed([documents[index] for index in group], device)
            left_out = [skipped[index] for index in group] if skipped is not None else [0] * len(group)
            totals = document_sums(token_log_likelihoods(lm, batch), batch.lengths, left_out)
            sums[group] = totals.double().cpu().numpy()
            counts[group] = np.array(batch.lengths) - 1 - np.array(left_out)
    finally:
        lm.train(training)
    return sums, counts
