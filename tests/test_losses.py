"""Preference losses against TRL's own functions and against the papers' equations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slam.losses import dpo_loss, ipo_loss, orpo_loss, simpo_loss

sides = st.lists(
    st.tuples(*[st.floats(-60, -0.05)] * 4, st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8
)


def columns(rows):
    """Chosen, rejected, both by the reference, and how many tokens each side has."""
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]


def with_gradient(function, chosen, rejected):
    """`(losses, gradient by chosen, gradient by rejected)`."""
    leaves = [side.clone().requires_grad_() for side in (chosen, rejected)]
    losses = function(*leaves)
    losses.sum().backward()
    return losses.detach(), *(leaf.grad for leaf in leaves)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@given(sides, st.floats(0.01, 2.0), st.floats(0, 0.49))
def test_dpo_is_the_papers_equation_and_with_smoothed_labels_the_mixture_of_both_ways_round(
    rows, beta, noise
):
    chosen, rejected, before_chosen, before_rejected, _, _ = columns(rows)
    losses = dpo_loss(chosen, rejected, before_chosen, before_rejected, beta=beta, label_smoothing=noise)
    margins = beta * ((chosen - before_chosen) - (rejected - before_rejected)).numpy()
    expected = (1 - noise) * np.logaddexp(0, -margins) + noise * np.logaddexp(0, margins)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-9, atol=1e-12)


@given(sides, st.floats(0.05, 2.0))
def test_ipo_is_least_where_the_margin_a_token_is_half_of_one_over_beta(rows, beta):
    chosen, rejected, before_chosen, before_rejected, better, worse = columns(rows)
    about = {"chosen_tokens": better, "rejected_tokens": worse, "beta": beta}
    losses = ipo_loss(chosen, rejected, before_chosen, before_rejected, **about)
    margins = (chosen - before_chosen) / better - (rejected - before_rejected) / worse
    torch.testing.assert_close(losses, (margins - 1 / (2 * beta)) ** 2)
    exact = before_chosen + better * (1 / (2 * beta) + (rejected - before_rejected) / worse)
    assert ipo_loss(exact, rejected, before_chosen, before_rejected, **about).max() < 1e-12


# TRL keeps these two apart from its main trainers, and says so
@pytest.mark.filterwarnings("ignore")
@given(rows=sides, beta=st.floats(0.1, 3.0), margin=st.floats(0.0, 2.0))
def test_simpo_equals_trls_value_and_gradient(rows, beta, margin):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    trainer = SimpleNamespace(
        loss_type="simpo", beta=beta, simpo_gamma=margin, label_smoothing=0.0, alpha=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    chosen, rejected, _, _, better, worse = columns(rows)
    theirs = with_gradient(
        lambda c, r: CPOTrainer.cpo_loss(trainer, c / better, r / worse)[0], chosen, rejected
    )
    ours = with_gradient(
        lambda c, r: simpo_loss(c, r, chosen_tokens=better, rejected_tokens=worse, beta=beta, margin=margin),
        chosen,
        rejected,
    )
    assert_same(ours, theirs)


@pytest.mark.filterwarnings("ignore")
@given(rows=sides, beta=st.floats(0.05, 2.0))
def test_orpo_equals_trls_value_and_gradient(rows, beta):
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    trainer = SimpleNamespace(beta=beta, accelerator=SimpleNamespace(device="cpu"))
    chosen, rejected, _, _, better, worse = (column.float() for column in columns(rows))
    # TRL's is what is added to the chosen side's likelihood, so its sign is turned round
    theirs = with_gradient(
        lambda c, r: -ORPOTrainer.odds_ratio_loss(trainer, c / better, r / worse)[0], chosen, rejected
    )
    ours = with_gradient(
        lambda c, r: orpo_loss(c, r, chosen_tokens=better, rejected_tokens=worse, beta=beta), chosen, rejected
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
