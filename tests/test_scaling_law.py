from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize_scalar

from slam.errors import InputError
from slam.scaling_law import PUBLISHED, Points, ScalingLaw, fit_law

SPEECH = PUBLISHED["speech"]


def grid(law, *, sizes=5, budgets=5, noise=0.0, seed=0, unique=None):
    """Losses of `law` on a grid of N and D, with log-normal noise."""
    counts = np.meshgrid(np.geomspace(5e6, 8e8, sizes), np.geomspace(1e8, 8e10, budgets))
    parameters, tokens = (axis.ravel() for axis in counts)
    unique = None if unique is None else np.full(len(tokens), unique)
    losses = law.loss(parameters, tokens, unique_tokens=unique)
    drawn = np.random.default_rng(seed).normal(0, noise, len(losses))
    return Points(parameters, tokens, losses * np.exp(drawn), unique)


@pytest.mark.parametrize(
    ("compute", "parameters", "tokens", "loss"),
    [(3.0e18, 59e6, 8.4e9, 2.054), (4.97e18, 76e6, 10.9e9, None)],
)
def test_the_published_law_gives_the_paper_s_optimum(compute, parameters, tokens, loss):
    found = SPEECH.optimal(compute)
    assert found.parameters == pytest.approx(parameters, rel=0.01)
    assert found.tokens == pytest.approx(tokens, rel=0.01)
    assert 6 * found.parameters * found.tokens == pytest.approx(compute)
    if loss is not None:
        assert found.loss == pytest.approx(loss, abs=6e-4)
    assert pytest.approx(0.127, abs=5e-4) == SPEECH.G


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_closed_form_is_the_least_loss(name):
    law, compute = PUBLISHED[name], 1e19
    searched = minimize_scalar(
        lambda log: law.loss(np.exp(log), compute / 6 / np.exp(log)), bounds=(5, 30), method="bounded"
    )
    assert law.optimal(compute).loss == pytest.approx(searched.fun, rel=1e-9)
    assert law.compute_to(law.optimal(compute).loss) == pytest.approx(compute)


def test_repeats_teach_less_and_less():
    # equations 5 and 6 of Muennighoff et al., written out
    unique, epochs = 1e8, 20
    tokens = unique + unique * 25.0 * (1 - np.exp(-(epochs - 1) / 25.0))
    law = replace(SPEECH, R_N=None)
    assert law.loss(1e7, epochs * unique, unique_tokens=unique) == pytest.approx(law.loss(1e7, tokens))
    assert law.loss(1e7, unique, unique_tokens=unique) == law.loss(1e7, unique)
    assert law.loss(1e7, unique, unique_tokens=5 * unique) == law.loss(1e7, unique)
    # a model too large for its data counts for less
    assert SPEECH.loss(1e10, unique, unique_tokens=unique) > law.loss(1e10, unique, unique_tokens=unique)


def test_with_little_data_the_best_model_is_searched_for():
    law, compute, unique = replace(SPEECH, R_N=None), 1e18, 2e8
    found = law.optimal(compute, unique_tokens=unique)
    sizes = np.geomspace(1e6, 1e10, 20_001)
    assert found.loss == pytest.approx(
        law.loss(sizes, compute / 6 / sizes, unique_tokens=unique).min(), rel=1e-6
    )
    assert found.parameters > law.optimal(compute).parameters
    assert found.loss > law.optimal(compute).loss


def test_a_law_without_repeats_refuses_them():
    with pytest.raises(InputError, match="no R_D"):
        PUBLISHED["speech-unigram"].loss(1e7, 1e9, unique_tokens=1e8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_law_without_noise_is_recovered(name):
    found = fit_law(grid(PUBLISHED[name]), resamples=0).law
    for coefficient in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, coefficient) == pytest.approx(getattr(PUBLISHED[name], coefficient), rel=1e-3)


def test_repeats_are_recovered():
    law = replace(SPEECH, R_N=None)
    found = fit_law(grid(law, unique=2e9), resamples=0).law
    assert pytest.approx(25.0, rel=1e-3) == found.R_D
    assert found.beta == pytest.approx(law.beta, rel=1e-3)


def test_the_fit_is_where_least_squares_of_scipy_ends():
    points = grid(SPEECH, noise=0.005)
    found = fit_law(points, resamples=0).law

    def residuals(values):
        terms = (
            values[0] - values[3] * np.log(points.parameters),
            values[1] - values[4] * np.log(points.tokens),
        )
        return np.log(np.exp(terms[0]) + np.exp(terms[1]) + np.exp(values[2])) - np.log(points.losses)

    start = [*np.log([13.9, 39.8, 1.73]), 0.25, 0.24]
    least = least_squares(
        residuals, start, loss="huber", f_scale=1e-3, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    ours = [*np.log([found.A, found.B, found.E]), found.alpha, found.beta]
    np.testing.assert_allclose(ours, least.x, rtol=1e-4)


def test_the_intervals_hold_the_exponents():
    # benchmarks/scaling_law_recovery.py counts more seeds; 8 of 10 is what 90 % leaves to chance
    held = {"alpha": 0, "beta": 0}
    for seed in range(10):
        fit = fit_law(grid(SPEECH, noise=0.003, seed=seed), resamples=40, seed=seed)
        for name in held:
            low, high = fit.interval(name)
            held[name] += low <= getattr(SPEECH, name) <= high
            assert low < high
    assert min(held.values()) >= 8


def test_what_a_better_setting_is_worth():
    baseline = fit_law(grid(SPEECH, noise=0.002), resamples=60)
    shape = grid(SPEECH)
    # losses that four times the compute gives, at the shape of the optimum
    optima = [SPEECH.optimal(6 * n * d) for n, d in zip(shape.parameters, shape.tokens, strict=True)]
    better = Points(
        np.asarray([best.parameters for best in optima]),
        np.asarray([best.tokens for best in optima]),
        np.asarray([SPEECH.optimal(4 * 6 * best.parameters * best.tokens).loss for best in optima]),
    )
    value, low, high = baseline.multiplier(better)
    assert low < 4 < high
    assert value == pytest.approx(4, rel=0.15)
    same, low, high = baseline.multiplier(shape)
    assert low < 1 < high
    assert same == pytest.approx(1, rel=0.05)


def test_a_loss_below_the_floor_is_worth_endless_compute():
    assert SPEECH.compute_to(1.73) == float("inf")
    assert SPEECH.multiplier(1e8, 1e9, 1.5) == float("inf")


@pytest.mark.parametrize(
    ("points", "line"),
    [
        (lambda: grid(SPEECH, sizes=2, budgets=2), "at least 8 points, got 4"),
        (lambda: grid(SPEECH, sizes=2), "at least 3 different numbers of parameters"),
        (lambda: grid(SPEECH, budgets=2), "at least 3 different numbers of tokens"),
        (lambda: Points(np.ones(2), np.ones(2), np.asarray([1.0, 0.0])), "all above 0"),
    ],
)
def test_points_that_decide_nothing_are_refused(points, line):
    with pytest.raises(InputError, match=line):
        fit_law(points())


def test_a_law_may_be_named_by_its_coefficients_alone():
    law = ScalingLaw(E=1.0, A=2.0, B=3.0, alpha=1.0, beta=1.0)
    assert law.loss(2.0, 3.0) == 3.0
    np.testing.assert_array_equal(law.loss(np.asarray([2.0, 1.0]), 3.0), [3.0, 4.0])
