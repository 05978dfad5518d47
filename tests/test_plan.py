"""`slam plan`: measured by the training's own update, priced by the laws, written as a recipe that runs."""

import json
import math
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import slam.candidates
from slam.architecture import Architecture
from slam.bases import with_vocabulary
from slam.cli import main
from slam.errors import ConfigError, InputError, MismatchError
from slam.packing import packed, token_log_likelihoods, use_packed
from slam.plan import CPU_SIZES, PlanSettings, expected_loss, make_plan, recommend
from slam.plan_data import Row, read_corpus, read_law
from slam.plan_page import recipe_text, table
from slam.pretrain import PretrainConfig, pretrain
from slam.probing import Measured, NoFit, Trial, made_up, probe
from slam.recipe import load_recipe
from slam.run import read_run
from slam.runner import run_recipe
from slam.scaling_law import PUBLISHED, ScalingLaw
from slam.shards import open_shards
from slam.training_memory import activation_bytes
from tiny_families import SUPPORTED, save_base
from toy_training import Clock, write_shards

SMALL = Architecture(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2)
ROW = Row("a", 1_000_000, 1024, 2, measured=True, tokens_per_second=1000.0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder


def config_of(shards: Path = Path(), **changes: object) -> PretrainConfig:
    settings = {"budget": "20 steps", "context": 32, "batch_tokens": 80, "micro_batch_tokens": 40}
    return PretrainConfig(shards=shards, **settings | changes)


def trial_of(shards: Path, **changes: object) -> Trial:
    corpus = read_corpus([shards], 32)
    given = {"name": "small", "base": SMALL, "lengths": corpus.lengths, "num_units": corpus.num_units}
    return Trial(**given | {"config": config_of()} | changes)


def study_of(path: Path, law: ScalingLaw) -> Path:
    names = ["E", "A", "B", "alpha", "beta", *(["R_D"] if law.R_D else [])]
    rows = {name: {"value": getattr(law, name), "low": 0.0, "high": 9.0} for name in names}
    path.write_text(json.dumps({"law": {"coefficients": rows}}))
    return path


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────


def test_speed_is_that_of_the_training_that_follows_by_one_clock(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every update takes one tick, so tokens a second are the tokens of an update: the plan's are random."""
    Clock(monkeypatch)
    planned = probe(trial_of(shards, seconds=1.0))
    assert isinstance(planned, Measured)
    run = pretrain(config_of(shards, architecture=SMALL), tmp_path / "lm")
    assert planned.tokens_per_second == pytest.approx(run.results["tokens_per_second"], rel=0.1)
    assert planned.parameters == run.results["num_parameters"]
    assert planned.mfu is None  # nobody knows what this CPU could do


def test_random_documents_are_as_long_as_the_datas_and_in_its_vocabulary(shards: Path) -> None:
    trial = trial_of(shards)
    given, made = open_shards(shards, "train").chunked(32), made_up(trial)
    assert made.lengths.mean() == pytest.approx(given.lengths.mean(), rel=0.1)
    assert made.lengths.max() <= 32
    assert int(made.tokens.max()) < given.vocabulary.size
    assert len(made.tokens) >= 30 * trial.config.batch_tokens


def test_memory_is_the_kernels_word_for_the_process_as_a_runs_is(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slam.probing.peak_memory", lambda: 123)
    found = probe(trial_of(shards))
    assert isinstance(found, Measured)
    assert found.memory == 123


@pytest.mark.parametrize("family", ["qwen2-tied", "pythia", "opt", "gpt2"])
def test_what_is_kept_of_a_token_is_what_a_deep_model_keeps(family: str) -> None:
    """One block and two tell what six keep; and every model keeps its blocks' inputs and its scores."""
    config = SUPPORTED[family]()
    deep = with_vocabulary(config, 22, num_hidden_layers=6)
    found = activation_bytes(deep, 22, bf16=False)
    assert found == pytest.approx(kept_in_training(deep), rel=0.02)
    assert found > 6 * 4 * deep.hidden_size + 4 * 22


def kept_in_training(config: Any) -> float:
    """Bytes a token that autograd keeps of the whole model, weights and what does not grow left out."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lm.train(mode=False)
    use_packed(lm)
    totals = []
    for count in (3, 9):
        kept: dict[int, torch.Tensor] = {}
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor),
            lambda tensor: tensor,
        )
        with hooks:
            token_log_likelihoods(lm, packed([np.arange(8)] * count)).sum()
        totals.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
    return (totals[1] - totals[0]) / (6 * 8)


def test_a_base_of_any_family_is_tried_by_its_config_alone(shards: Path, tmp_path: Path) -> None:
    base = Path(save_base(tmp_path / "base", SUPPORTED["pythia"]()))
    (base / "model.safetensors").unlink()
    found = probe(trial_of(shards, base=str(base)))
    assert isinstance(found, Measured)
    assert found.tokens_per_second > 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_what_runs_out_of_memory_does_not_fit(
    error: Exception, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("slam.training.loop.Training.update", fail)
    assert probe(trial_of(shards)) == NoFit("does not fit")


def test_another_fault_is_no_lack_of_memory(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("slam.training.loop.Training.update", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        probe(trial_of(shards))


def test_what_an_estimate_says_will_not_fit_is_never_tried(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(slam.candidates, "probe_apart", tried.append)
    monkeypatch.setattr(slam.candidates, "free_memory", lambda: 1e6)
    with pytest.raises(InputError, match=r"no base can be trained, the first: qwen2 .* does not fit"):
        make_plan(PlanSettings(budget="1h", data=(shards,)))
    assert not tried


def test_a_size_that_fails_spares_the_larger_ones_and_no_time_is_told(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [
        trial_of(shards, name=name, config=config_of(micro_batch_tokens=size))
        for size in (40, 80)
        for name in ("large", "small")
    ]
    tried = []

    def some(trial: Trial) -> Measured | NoFit:
        tried.append((trial.name, trial.config.micro_batch_tokens))
        return NoFit("does not fit") if trial.name == "large" else Measured(1000, 100.0, None, 5.0)

    monkeypatch.setattr(slam.candidates, "probe_apart", some)
    rows = slam.candidates.measured_rows(trials, 60.0)
    assert tried == [("large", 40), ("small", 40), ("small", 80)]
    assert [bool(row.trouble) for row in rows] == [True, False, True, False]
    rows = slam.candidates.measured_rows(trials[1::2], 0.0)
    assert [row.measured for row in rows] == [True, False]
    assert rows[1].tokens_per_second == 100.0  # as many FLOP a second as the one that was measured


# ── what a budget buys ────────────────────────────────────────────────────────────────────────────────────


def test_a_day_on_the_papers_card_comes_out_as_the_paper_has_it() -> None:
    plan = make_plan(PlanSettings(budget="23.5h", gpu="RTX A5000", bases=("Qwen/Qwen2.5-0.5B",)))
    assert plan.estimated
    assert "not here" in plan.machine
    assert not plan.best.measured
    assert plan.best.tokens == pytest.approx(1.4e9, rel=0.03)  # Slam, Table 3
    assert (plan.best.micro_batch_tokens, plan.best.accumulation) == (8192, 16)  # Table 4
    assert plan.best.parameters == 358_347_904  # Table 7
    (other,) = (row for row in plan.rows if row != plan.best)
    assert other.trouble == "does not fit, by an estimate"  # 32,768 tokens in 24 GiB
    assert len(list(table(plan).columns[0].cells)) == 2


def test_repeated_tokens_teach_less_and_at_last_nothing() -> None:
    law = PUBLISHED["speech"]
    once = expected_loss(law, 1e8, 1e9, None)
    assert expected_loss(law, 1e8, 1e9, 2e9) == once == law.loss(1e8, 1e9)
    several = [expected_loss(law, 1e8, 1e9, unique) for unique in (1e9, 2e8, 5e7, 1e7)]
    assert several == sorted(several)
    assert several[0] == once < several[1]
    without = replace(law, R_D=None)  # a law fitted without repeats takes the published decay
    assert expected_loss(without, 1e8, 1e9, 1e8) == expected_loss(law, 1e8, 1e9, 1e8)


def test_what_starts_from_text_is_as_large_as_the_papers_ratio_allows() -> None:
    rows = [
        replace(ROW, base=name, parameters=size, tokens=1e9, published_loss=loss)
        for name, size, loss in (("s", 10**7, 2.2), ("m", 2 * 10**8, 2.1), ("l", 10**9, 2.3))
    ]
    assert recommend(rows, started=True, own=False)[0].base == "m"  # l sees one token a parameter
    assert recommend(rows, started=False, own=False)[0].base == "m"
    assert recommend(rows[::2], started=True, own=False)[0].base == "s"
    own = [replace(row, own_loss=loss) for row, loss in zip(rows, (1.0, 1.2, 0.9), strict=True)]
    best, reason = recommend(own, started=True, own=True)
    assert best.base == "l"
    assert "your own law" in reason


def test_ones_own_law_is_read_from_a_study_and_decides(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ScalingLaw(E=0.5, A=40.0, B=1.0, alpha=0.3, beta=0.3, R_D=4.0)
    path = study_of(tmp_path / "study.json", mine)
    assert replace(read_law(path), source="") == mine
    sizes = iter((1000.0, 900.0, 800.0, 700.0))
    monkeypatch.setattr(slam.candidates, "probe_apart", lambda _: Measured(1, next(sizes), None, 1e6))
    plan = make_plan(
        PlanSettings(budget="1h", data=(shards,), law=path, context=32, micro_batch_tokens=(1024,))
    )
    tokens = len(open_shards(shards, "train").tokens)
    for row in plan.rows:
        assert row.tokens == 3600 * row.tokens_per_second
        assert row.epochs == row.tokens / tokens
        assert row.own_loss == mine.loss(row.parameters, row.tokens, unique_tokens=tokens)
    assert plan.best.own_loss == min(row.own_loss for row in plan.rows)
    assert plan.best.parameters == max(row.parameters for row in plan.rows)


# ── the recipe ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_written_recipe_runs_as_it_is(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command once, measured in a process of its own."""
    monkeypatch.chdir(tmp_path)
    base = Path(save_base(tmp_path / "base", SUPPORTED["qwen2-tied"]()))
    words = ["plan", "--budget", "12 steps", "--data", str(shards), "--bases", str(base), "--context", "32"]
    main([*words, "--batch-tokens", "80", "--micro-batch-tokens", "40", "--write", "mine.toml"])
    said = capsys.readouterr().out
    assert "recommended" in said
    recipe = load_recipe(Path("mine.toml"))
    assert [step.stage for step in recipe.steps] == ["pretrain"]
    config = recipe.steps[0].config
    assert (config.base, config.batch_tokens, config.micro_batch_tokens) == (base, 80, 40)
    run_recipe(recipe)
    run = read_run(recipe.steps[0].out)
    assert run is not None
    assert run.results["steps"] == 12
    with pytest.raises(SystemExit) as end:
        main([*words, "--write", "mine.toml"])
    assert end.value.code == 2
    assert "mine.toml: is there already" in capsys.readouterr().err


def test_units_are_packed_first_and_sizes_are_written_out(toy_units: Path, tmp_path: Path) -> None:
    corpus = read_corpus([toy_units], 1024)
    plan = make_plan(PlanSettings(budget="1h", gpu="H200", bases=("facebook/opt-125m",)))
    for base in ("facebook/opt-125m", *CPU_SIZES):
        settings = replace(plan.settings, data=(toy_units,))
        best = replace(plan.best, base=base)
        path = tmp_path / "r.toml"
        path.write_text(recipe_text(replace(plan, settings=settings, best=best, corpus=corpus), "r"))
        recipe = load_recipe(path, folder=tmp_path / "work")
        assert [step.stage for step in recipe.steps] == ["pack", "pretrain"]
        config = recipe.steps[1].config
        assert config.architecture == CPU_SIZES.get(base, config.architecture)
        assert config.hub_base == (None if base in CPU_SIZES else base)
        assert tomllib.loads(path.read_text())["folder"] == "work/r"
    assert corpus.tokens == sum(corpus.lengths)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────


def other_tokenizer(folder: Path, units: Path) -> Path:
    shutil.copytree(units, folder)
    about = json.loads((folder / "units.json").read_text())
    (folder / "units.json").write_text(json.dumps(about | {"tokenizer_fingerprint": "f" * 16}))
    return folder


def test_data_that_do_not_go_together_are_named(shards: Path, toy_units: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"encode both with one tokenizer"):
        read_corpus([toy_units, other_tokenizer(tmp_path / "other", toy_units)], 1024)
    with pytest.raises(InputError, match="one folder of token shards"):
        read_corpus([shards, toy_units], 1024)
    with pytest.raises(InputError, match="holds neither units nor token shards"):
        read_corpus([tmp_path], 1024)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "24:00"], "write a number with its unit"),
        (["--budget", "9 steps"], "buys about 9 updates, fewer than 10"),
        (
            ["--budget", "1s", "--gpu", "A5000", "--bases", "facebook/opt-125m"],
            "fewer than 10; raise it, or make the batch smaller",
        ),
        (["--budget", "1h", "--gpu", "H20O"], "no GPU called 'H20O' is known; did you mean 'H200'?"),
        (["--budget", "1h", "--write", "x.toml"], "--write needs --data"),
        (["--budget", "1h", "--law", "none.json"], "none.json: cannot be read"),
        (["--budget", "1h", "--gpu", "L4", "--bases", "nobody/x"], "nobody/x: no folder of a causal LM"),
        (
            [
                "--budget",
                "1h",
                "--gpu",
                "L4",
                "--bases",
                "facebook/opt-125m",
                "--micro-batch-tokens",
                "131072",
            ],
            "does not fit",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["plan", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_study_without_a_law_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"law": null}')
    with pytest.raises(InputError, match=r"holds no fitted law"):
        read_law(tmp_path / "study.json")


def test_sizes_must_be_sizes() -> None:
    with pytest.raises(ConfigError, match="micro_batch_tokens"):
        PlanSettings(budget="1h", micro_batch_tokens=(0,))
    assert math.isfinite(float(np.mean(read_corpus([], 1024).lengths)))
