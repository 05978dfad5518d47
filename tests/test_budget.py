import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slam.budget import Budget, TrainingConfig, learning_rate_share
from slam.errors import ConfigError

SCHEDULES = ("cosine", "linear", "wsd", "constant", "inverse-sqrt")
KINDS = ("seconds", "tokens", "steps")
POSITIVE = (
    "learning_rate",
    "muon_learning_rate",
    "clip",
    "micro_batch_tokens",
    "checkpoint_seconds",
    "spike_deviations",
)
NOTHING = dict.fromkeys(KINDS, 0.0)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("24h", Budget(seconds=86_400.0)),
        ("90s", Budget(seconds=90.0)),
        ("1.5 min", Budget(seconds=90.0)),
        ("1d", Budget(seconds=86_400.0)),
        ("1.4B tokens", Budget(tokens=1_400_000_000)),
        ("2 M tokens", Budget(tokens=2_000_000)),
        ("500 steps", Budget(steps=500)),
        ("3k steps", Budget(steps=3000)),
        ("24h or 1.4B tokens", Budget(seconds=86_400.0, tokens=1_400_000_000)),
        ("500 steps OR 5m", Budget(steps=500, seconds=300.0)),
        ("  2h or 1k steps  or 7M tokens ", Budget(seconds=7200.0, steps=1000, tokens=7_000_000)),
    ],
)
def test_a_budget_is_one_or_several_numbers_with_their_units(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["24:00", "5", "", "h", "-3h", "1.4B", "1e9 tokens", "5 hours ago", "nan s"])
@pytest.mark.parametrize("among", ["{}", "{} or 3k steps", "3k steps or {}"])
def test_what_names_no_budget_is_refused(text, among):
    with pytest.raises(ConfigError, match="write a number with its unit"):
        Budget.parse(among.format(text))


@pytest.mark.parametrize("text", ["5h and 3k steps", "5hor3k steps", "5h, 3k steps", "5h 3k steps"])
def test_budgets_are_joined_by_or_and_by_nothing_else(text):
    with pytest.raises(ConfigError, match="several joined by 'or'"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["0 steps", "0h", "0.0s", "0.2 tokens", "5h or 0 steps"])
def test_a_budget_of_nothing_is_refused(text):
    with pytest.raises(ConfigError, match="buys nothing"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("24h or 90s", "seconds"),
        ("1k tokens or 5m or 2k tokens", "tokens"),
        ("20 steps or 20 steps", "steps"),
    ],
)
def test_a_kind_of_budget_named_twice_is_refused(text, kind):
    with pytest.raises(ConfigError, match=f"names {kind} twice"):
        Budget.parse(text)


@given(spent=st.floats(0, 2), budget=st.floats(1, 1e6), kind=st.sampled_from(KINDS))
def test_the_share_spent_is_the_same_in_every_unit_and_never_above_one(spent, budget, kind):
    share = Budget(**{kind: budget}).share(**NOTHING | {kind: spent * budget})
    assert share == pytest.approx(min(1.0, spent))


amounts = st.fixed_dictionaries({kind: st.floats(0.01, 1e9) for kind in KINDS})


@given(
    limits=st.dictionaries(st.sampled_from(KINDS), st.floats(0.01, 1e9), min_size=1),
    spent=amounts,
    more=amounts,
)
def test_a_budget_of_several_limits_ends_with_the_first_of_them(limits, spent, more):
    budget = Budget(**limits)
    assert (budget.share(**spent) == 1.0) == any(spent[kind] >= limit for kind, limit in limits.items())
    # each further limit can only bring the end nearer, and spending never takes a share back
    for kind, limit in limits.items():
        assert budget.share(**spent) >= Budget(**{kind: limit}).share(**spent)
    assert budget.share(**{kind: spent[kind] + more[kind] for kind in KINDS}) >= budget.share(**spent)


def updates_made(limit, cost):
    """Counted out: an update begins while anything is left."""
    spent, updates = 0.0, 0
    while spent < limit:
        spent += cost
        updates += 1
    return updates


@given(limit=st.integers(1, 3000), cost=st.integers(1, 300), kind=st.sampled_from(["tokens", "seconds"]))
def test_a_budget_that_buys_fewer_than_ten_updates_is_refused_with_their_number(limit, cost, kind):
    text = f"{limit} tokens" if kind == "tokens" else f"{limit}s"
    bought = updates_made(limit, cost)
    asked = {"step_tokens": cost} if kind == "tokens" else {"step_seconds": cost}
    if bought >= 10:
        Budget.parse(text).check(**asked)
        return
    with pytest.raises(ConfigError, match=f"'{text}'.* about {bought} updates, fewer than 10") as caught:
        Budget.parse(text).check(**asked)
    assert "\n" not in str(caught.value)


def test_the_limit_that_is_reached_first_decides_whether_a_budget_is_too_small():
    budget = Budget.parse("1h or 900 tokens")
    budget.check(step_seconds=1.0, step_tokens=90.0)
    with pytest.raises(ConfigError, match="about 9 updates"):
        budget.check(step_seconds=1.0, step_tokens=100.0)
    with pytest.raises(ConfigError, match="about 4 updates"):
        budget.check(step_seconds=900.0, step_tokens=90.0)


@pytest.mark.parametrize("text", ["9 steps", "1 steps", "1h or 3 steps"])
def test_a_training_of_fewer_than_ten_steps_is_no_setting(text):
    with pytest.raises(ConfigError, match="updates, fewer than 10"):
        TrainingConfig(budget=text)
    assert TrainingConfig(budget="10 steps").budget == "10 steps"


@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.floats(0, 0.9),
    floor=st.floats(0, 0.9),
    decay=st.floats(0.01, 1),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=9),
)
def test_the_rate_rises_in_warm_up_then_never_rises_and_never_leaves_its_bounds(
    *, schedule, warmup, floor, decay, shares
):
    assume(decay <= 1 - warmup)
    points = sorted(shares)
    rates = [learning_rate_share(schedule, s, warmup=warmup, floor=floor, decay=decay) for s in points]
    for (share, rate), (later, after) in zip(
        zip(points, rates, strict=True), zip(points[1:], rates[1:], strict=True), strict=False
    ):
        assert 0 <= rate <= 1 + 1e-9
        if later < warmup:
            assert after >= rate
        elif share >= warmup:
            assert after <= rate + 1e-9
            assert after >= floor - 1e-9


@given(
    warmup=st.floats(0, 0.9),
    floor=st.floats(0, 0.9),
    decay=st.floats(0.01, 1),
    schedule=st.sampled_from(["cosine", "linear", "wsd"]),
)
def test_the_rate_is_at_its_peak_after_warm_up_and_at_its_floor_at_the_end(warmup, floor, decay, schedule):
    assume(decay <= 1 - warmup)
    rate = {
        s: learning_rate_share(schedule, s, warmup=warmup, floor=floor, decay=decay) for s in (0, warmup, 1)
    }
    assert rate[warmup] == pytest.approx(1.0, abs=1e-6)
    assert rate[1] == pytest.approx(floor, abs=1e-6)
    if warmup:
        assert rate[0] == 0


@given(
    warmup=st.floats(0, 0.5),
    floor=st.floats(0, 0.9),
    decay=st.floats(0.01, 0.5),
    part=st.floats(0, 1),
)
def test_wsd_stays_at_the_peak_until_its_decay_and_then_falls_as_one_minus_a_root(warmup, floor, decay, part):
    def rate(share):
        return learning_rate_share("wsd", share, warmup=warmup, floor=floor, decay=decay)

    assert rate(warmup + part * (1 - decay - warmup)) == pytest.approx(1.0, abs=1e-6)
    assert rate(1 - decay + part * decay) == pytest.approx(1 - (1 - floor) * math.sqrt(part), abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "share", "expected"),
    [
        ("cosine", 0.55, 0.55),  # half way between warm-up and end: half way between peak and floor
        ("linear", 0.55, 0.55),
        ("linear", 0.775, 0.325),
        ("cosine", 0.775, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2),  # cos(135°) = -√½
        ("wsd", 0.85, 1 - 0.9 * 0.5),  # a quarter of the decay: half of the fall
        ("constant", 0.9, 1.0),
        ("inverse-sqrt", 0.4, 0.5),  # four times the warm-up: half of the peak
    ],
)
def test_the_schedules_pass_through_points_worked_out_by_hand(schedule, share, expected):
    found = learning_rate_share(schedule, share, warmup=0.1, floor=0.1, decay=0.2)
    assert found == pytest.approx(expected)


@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.floats(0, 0.5),
    warmup_steps=st.integers(0, 60),
    num_steps=st.integers(10, 100),
)
def test_of_two_warm_ups_the_longer_counts(schedule, warmup, warmup_steps, num_steps):
    config = {"budget": f"{num_steps} steps", "schedule": schedule, "warmup": warmup}
    both = TrainingConfig(**config, warmup_steps=warmup_steps)
    share_alone = TrainingConfig(**config)
    rates = [both.rate(step / num_steps, step) for step in range(num_steps)]
    for step, rate in enumerate(rates):
        without = share_alone.rate(step / num_steps, step)
        if step >= warmup_steps:
            assert rate == without
        else:  # neither warm-up is overtaken, and one of them is followed
            assert rate == pytest.approx(min(without, (step + 1) / warmup_steps))
    rising = rates[: max(warmup_steps, math.ceil(warmup * num_steps))]
    if schedule == "constant":  # the others may have begun to fall when the steps are many
        assert rising == sorted(rising)


def test_warm_up_in_steps_gives_the_first_update_a_rate_and_reaches_the_peak():
    config = TrainingConfig(budget="1000 steps", warmup=0.0, warmup_steps=4, schedule="constant")
    assert [config.rate(step / 1000, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@given(
    name=st.sampled_from(POSITIVE),
    value=st.integers(-5, 0) | st.just(math.nan),
)
def test_settings_that_must_be_more_than_nothing_are_refused_otherwise(name, value):
    with pytest.raises(ConfigError, match=f"{name} = {value}: must be more than 0"):
        TrainingConfig(budget="1h", **{name: value})


@given(
    name=st.sampled_from(["warmup", "floor", "embeddings_first"]),
    value=st.floats(max_value=-1e-9) | st.floats(min_value=1.0) | st.just(math.nan),
)
def test_settings_that_are_shares_must_be_below_one_and_not_negative(name, value):
    with pytest.raises(ConfigError, match=f"{name} = .*must be a share"):
        TrainingConfig(budget="1h", **{name: value})


@pytest.mark.parametrize(
    ("warmup", "decay"), [(0.1, 0.0), (0.1, -0.2), (0.1, 0.95), (0.5, 0.6), (0.0, 1.1), (0.0, math.nan)]
)
def test_a_decay_that_does_not_fit_beside_the_warm_up_is_refused(warmup, decay):
    with pytest.raises(ConfigError, match=r"decay = .*fits beside warmup"):
        TrainingConfig(budget="1h", schedule="wsd", warmup=warmup, decay=decay)


@pytest.mark.parametrize(("warmup", "decay"), [(0.8, 0.2), (0.9, 0.1), (0.7, 0.3), (0.0, 1.0)])
def test_warm_up_and_decay_may_fill_the_budget(warmup, decay):
    assert TrainingConfig(budget="1h", schedule="wsd", warmup=warmup, decay=decay).decay == decay


def test_a_decay_that_the_schedule_does_not_use_refuses_nothing():
    assert TrainingConfig(budget="1h", schedule="cosine", warmup=0.85).warmup == 0.85


def test_warm_up_of_fewer_than_no_steps_is_refused():
    with pytest.raises(ConfigError, match="warmup_steps = -1: must not be negative"):
        TrainingConfig(budget="1h", warmup_steps=-1)
