"""Next-token scores and what was said → which tokens may be drawn → a token for each row.

The numbers are those of `transformers`' logits processors; here they are tensors over the batch from end to
end, without a wait for the device, so that a CUDA graph can hold them.
"""

import torch
from torch import Tensor

from slam.sampling import Sampling

NEVER = float("-inf")


def filtered(
    scores: Tensor, sampling: Sampling, *, history: Tensor, lengths: Tensor, seen: Tensor, never: Tensor
) -> Tensor:
    """Scores as they are drawn from, `[B, V]` fp32; those of tokens that may not be drawn are -inf.

    Args:
        scores: of the next token, `[B, V]`.
        sampling: the settings.
        history: tokens said, prompts included, `[B, S]`; what lies behind the lengths does not matter.
        lengths: how many were said, `[B]`.
        seen: which were said, `[B, V]` bool.
        never: tokens that are never said, `[V]` bool.
    """
    scores = scores.float()
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if sampling.no_repeat_ngram:
        scores = scores.masked_fill(_repeating(history, lengths, sampling.no_repeat_ngram, seen), NEVER)
    scores = scores.masked_fill(never, NEVER)
    if sampling.greedy:
        return scores
    scores = scores / sampling.temperature
    if sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, NEVER)
    if sampling.top_p < 1:
        ascending, order = scores.sort(dim=-1)
        left_out = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        left_out[:, -1] = False
        scores = scores.masked_fill(left_out.scatter(1, order, left_out), NEVER)
    if sampling.min_p:
        probabilities = scores.softmax(dim=-1)
        least = sampling.min_p * probabilities.amax(dim=-1, keepdim=True)
        scores = scores.masked_fill(probabilities < least, NEVER)
    return scores


def _repeating(history: Tensor, lengths: Tensor, size: int, seen: Tensor) -> Tensor:
    """Tokens that would say the last `size` tokens for the second time, `[B, V]` bool."""
    banned = torch.zeros_like(seen)
    if history.shape[1] < size:
        return banned
    windows = history.unfold(1, size, 1)  # [B, S - size + 1, size]
    begins = torch.arange(windows.shape[1], device=history.device)
    last = lengths[:, None] - (size - 1) + torch.arange(size - 1, device=history.device)
    ending = history.gather(1, last.clamp(min=0))  # [B, size - 1]
    alike = (windows[..., :-1] == ending[:, None]).all(dim=-1) & (begins + size <= lengths[:, None])
    # a token counts as banned if any window bans it, so the amounts are added
    counts = torch.zeros(seen.shape, dtype=torch.int32, device=seen.device)
    return counts.scatter_add_(1, windows[..., -1], alike.int()) > 0


def draw(scores: Tensor, uniforms: Tensor | None) -> Tensor:
    """One token a row, `[B]`: the likeliest, or where a uniform number `[B]` falls among the probabilities.

    By the inverse of the distribution function, so that a row needs one number a step, whatever V is.
    """
    if uniforms is None:
        return scores.argmax(dim=-1)
    total = scores.softmax(dim=-1).cumsum(dim=-1)
    place = uniforms[:, None] * total[:, -1:]
    # rounding may reach the end, behind which tokens have no probability
    return torch.minimum((total <= place).sum(dim=-1), (total < total[:, -1:]).sum(dim=-1))
