"""Log-likelihoods of chosen and rejected continuations → the preference loss of each pair.

Sums are in nats, given the prompt. The mean over pairs, and a term for the chosen side's own likelihood, are
the caller's.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimisation (Rafailov et al., 2023, equation 7), conservative with smoothed labels.

    Args:
        chosen: summed log-likelihood of each chosen continuation given its prompt, `[B]` nats.
        rejected: the same of the rejected ones, `[B]`.
        reference_chosen: by the frozen reference, `[B]`.
        reference_rejected: by the frozen reference, `[B]`.
        beta: how strongly the model is held to the reference.
        label_smoothing: the share of pairs taken to be labelled the wrong way round (Mitchell, 2023).

    Returns:
        The loss of each pair, `[B]`.
    """
    margin = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    right, wrong = functional.logsigmoid(margin), functional.logsigmoid(-margin)
    return -(1.0 - label_smoothing) * right - label_smoothing * wrong


def ipo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    beta: float,
) -> Tensor:
    """Identity preference optimisation (Azar et al., 2023, equation 17), likelihoods per token.

    The margin is drawn to 1 / 2β and no further, so a pair once learnt is left alone.

    Args:
        chosen: as in `dpo_loss`, and so the next three.
        rejected: `[B]`.
        reference_chosen: `[B]`.
        reference_rejected: `[B]`.
        chosen_tokens: tokens that count in each chosen continuation, `[B]`.
        rejected_tokens: the same of the rejected ones, `[B]`.
        beta: the paper's τ.

    Returns:
        The loss of each pair, `[B]`.
    """
    better = (chosen - reference_chosen) / chosen_tokens
    worse = (rejected - reference_rejected) / rejected_tokens
    return (better - worse - 1.0 / (2.0 * beta)) ** 2


def simpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    beta: float,
    margin: float,
) -> Tensor:
    """Simple preference optimisation (Meng et al., 2024, equation 6): no reference, likelihoods per token.

    Args:
        chosen: as in `dpo_loss`, `[B]`.
        rejected: `[B]`.
        chosen_tokens: tokens that count in each chosen continuation, `[B]`.
        rejected_tokens: the same of the rejected ones, `[B]`.
        beta: factor on the difference of the mean log-likelihoods; 2 to 2.5 in the paper.
        margin: what that difference should exceed, the paper's gamma.

    Returns:
        The loss of each pair, `[B]`.
    """
    difference = chosen / chosen_tokens - rejected / rejected_tokens
    return -functional.logsigmoid(beta * difference - margin)


def orpo_loss(
    chosen: Tensor, rejected: Tensor, *, chosen_tokens: Tensor, rejected_tokens: Tensor, beta: float
) -> Tensor:
    """The odds ratio of odds-ratio preference optimisation (Hong et al., 2024, equation 7): no reference.

    The paper adds the chosen side's own loss at weight 1.

    Args:
        chosen: as in `dpo_loss`, `[B]`.
        rejected: `[B]`.
        chosen_tokens: tokens that count in each chosen continuation, `[B]`.
        rejected_tokens: the same of the rejected ones, `[B]`.
        beta: weight of the odds ratio, the paper's λ.

    Returns:
        The loss of each pair, `[B]`.
    """
    better, worse = chosen / chosen_tokens, rejected / rejected_tokens
    log_odds_ratio = (better - worse) - (_log_one_minus_exp(better) - _log_one_minus_exp(worse))
    return -beta * functional.logsigmoid(log_odds_ratio)


def _log_one_minus_exp(value: Tensor) -> Tensor:
    """log(1 - exp(value)) for value < 0, by whichever form keeps its digits (Mächler, 2012)."""
    value = value.clamp(max=-1e-7)  # a likelihood of 1 has infinite odds
    near = torch.log(-torch.expm1(value.clamp(min=-math.log(2.0))))
    far = torch.log1p(-torch.exp(value.clamp(max=-math.log(2.0))))
    return torch.where(value > -math.log(2.0), near, far)
