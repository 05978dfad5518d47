"""Log-likelihoods of chosen and rejected continuations → the preference loss."""

from torch import Tensor
from torch.nn import functional


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """Direct preference optimisation (Rafailov et al., 2023, equation 7).

    Args:
        chosen: summed log-likelihood of each chosen continuation given its prompt, `[B]` nats.
        rejected: the same of the rejected ones, `[B]`.
        reference_chosen: by the frozen reference, `[B]`.
        reference_rejected: by the frozen reference, `[B]`.
        beta: how strongly the model is held to the reference.

    Returns:
        The loss of each pair, `[B]`.
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -functional.logsigmoid(beta * margin)
