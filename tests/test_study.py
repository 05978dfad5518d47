import re
import subprocess
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import stats

from slam import study as study_module
from slam.errors import ConfigError, InputError
from slam.recipe import load_recipe
from slam.run import read_json, read_run, write_json
from slam.runner import run_recipe
from slam.scaling_law import PUBLISHED
from slam.study import load_study
from slam.study_law import find_law
from slam.study_page import write_page
from slam.study_results import Outcome, differences, outcomes, summaries
from slam.study_runner import missing_inputs, plan_study, run_study
from toy_recipe import ENVIRONMENT, SLAM, slam

STUDIES = Path(__file__).parent.parent / "recipes" / "studies"
RECIPE = """
[steps.text]
stage = "synthesize"
texts = { stories = 8 }
text_only = true

[steps.tokens]
stage = "pack"
train = ["text"]
validation_share = 0.3

[steps.lm]
stage = "pretrain"
shards = "tokens"
architecture = { hidden_size = 8, intermediate_size = 16, num_layers = 1, num_heads = 1 }
context = 32
budget = "10 steps"
batch_tokens = 64
validations = 1

[steps.unused]
stage = "pretrain"
shards = "tokens"
budget = "10 steps"
"""
HEAD = """
recipe = "recipe.toml"
seeds = [0, 1]
seed_keys = ["lm.seed"]
"""
FACTORS = """
[factors.optimizer]
adamw = { "lm.optimizer" = "adamw" }
muon = {}

[factors.width]
narrow = {}
wide = { "lm.architecture.hidden_size" = 16 }
"""
METRICS = """
[metrics.loss]
step = "lm"
result = "final_validation_loss"
"""
BROKEN = """
broken = { "lm.context" = 2, "lm.batch_tokens" = 65 }
"""
TEXT_ALONE = """
recipe = "recipe.toml"
seeds = [0, 1, 2]
seed_keys = ["text.seed"]

[factors.stories]
few = {}
more = { "text.texts" = { stories = 9 } }
many = { "text.texts" = { stories = 10 } }

[factors.share]
third = {}
half = { "tokens.validation_share" = 0.5 }

[metrics.tokens]
step = "tokens"
result = "splits.train.tokens"
"""  # no model is trained, so that no process has to import torch
WORDS = "optimizer muon, width wide, seed 1"


def study_of(folder, text=HEAD + FACTORS + METRICS, **options):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "study.toml").write_text(text)
    return load_study(folder / "study.toml", **{"folder": folder / "out"} | options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study with two arms that fail, run; and what failed."""
    study = study_of(tmp_path_factory.mktemp("study"), HEAD + FACTORS + BROKEN + METRICS)
    failures = run_study(study, jobs=1)
    return study, failures, write_page(study)


def test_arms_are_all_levels_and_seeds_and_share_what_is_equal(tmp_path):
    study = study_of(tmp_path)
    assert len(study.arms) == 8
    assert study.arms[-1].name == WORDS
    assert [arm.seed for arm in study.arms] == [0] * 4 + [1] * 4
    assert len({arm.step("tokens").out for arm in study.arms}) == 1
    assert len({arm.step("lm").out for arm in study.arms}) == 8
    assert all([step.name for step in arm.steps] == ["text", "tokens", "lm"] for arm in study.arms)
    config = study.arms[-1].step("lm").config
    assert (config.seed, config.architecture.hidden_size, config.optimizer) == (1, 16, "muon")


def test_a_step_is_placed_by_what_it_is_made_from_wherever_the_folder_lies(tmp_path):
    here = study_of(tmp_path / "a")
    there = study_of(tmp_path / "b")
    names = [[step.out.name for step in arm.steps] for arm in here.arms]
    assert names == [[step.out.name for step in arm.steps] for arm in there.arms]
    other = study_of(tmp_path / "c", HEAD + '[settings]\n"text.seed" = 3\n' + FACTORS + METRICS)
    for arm, changed in zip(here.arms, other.arms, strict=True):
        assert not {step.out.name for step in arm.steps} & {step.out.name for step in changed.steps}


def test_how_a_step_is_done_moves_it_nowhere(tmp_path):
    plain = study_of(tmp_path / "a")
    split = study_of(tmp_path / "b", HEAD + '[settings]\n"lm.micro_batch_tokens" = 32\n' + FACTORS + METRICS)
    assert plain.arms[0].step("lm").out.name == split.arms[0].step("lm").out.name


def test_excluded_arms_are_left_out(tmp_path):
    rule = 'exclude = [{ optimizer = "adamw", width = ["wide"] }]\n'
    study = study_of(tmp_path, rule + HEAD + FACTORS + METRICS)
    assert {"optimizer": "adamw", "width": "wide"} not in study.cells
    assert len(study.arms) == 6


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (HEAD.replace("[0, 1]", "[]") + FACTORS + METRICS, "nothing to run; give one or more"),
        (HEAD.replace("[0, 1]", "[1, 1]") + FACTORS + METRICS, "holds one twice"),
        (HEAD.replace('["lm.seed"]', "[]") + FACTORS + METRICS, "several seeds and no seed_keys"),
        (HEAD + FACTORS.replace("lm.optimizer", "lm.optimiser") + METRICS, "did you mean 'optimizer'"),
        (HEAD + FACTORS.replace("lm.optimizer", "lmm.optimizer") + METRICS, "did you mean 'lm'"),
        (HEAD + FACTORS.replace('"adamw" }', '"adam" }') + METRICS, "arm optimizer adamw.*Invalid"),
        (HEAD + FACTORS.replace("hidden_size", "hiden_size") + METRICS, "did you mean 'hidden_size'"),
        (
            HEAD + FACTORS.replace('"lm.optimizer" = "adamw"', '"lm.architecture" = { num_layers = 2 }')
            + METRICS,
            "factor 'optimizer' and factor 'width' both set 'lm.architecture.hidden_size'",
        ),
        (HEAD + FACTORS + '[factors.seed]\nthree = { "lm.seed" = 3 }\n' + METRICS, "and seed_keys both set"),
        (HEAD + METRICS, "Object missing required field `factors`"),
        (HEAD + "[factors.none]\n" + METRICS, "every factor levels"),
        (HEAD + FACTORS + METRICS.replace('step = "lm"', 'step = "lmm"'), "no step is called 'lmm'; did you"),
        (HEAD + FACTORS + METRICS.replace("result", "reslt"), "unknown key 'reslt'; did you mean 'result'"),
        (HEAD + FACTORS + METRICS + 'where = { a = "b" }\n', "not both"),
        ("sedes = [1]" + HEAD + FACTORS + METRICS, "unknown key 'sedes'; did you mean 'seeds'"),
        ('compare = { width = "wider" }' + HEAD + FACTORS + METRICS, "did you mean 'wide'"),
        ('exclude = [{ widht = "wide" }]' + HEAD + FACTORS + METRICS, "did you mean 'width'"),
        (HEAD + FACTORS + METRICS + '[law]\nstep = "lm"\nmetric = "los"\n', "no metric is called 'los'"),
        (HEAD + FACTORS + METRICS + '[law]\nstep = "lm"\nmetric = "loss"\nagainst = "width"\n', "is fitted"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(tmp_path, text, line):
    with pytest.raises(ConfigError, match=line) as caught:
        study_of(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "study.toml"))


def test_ten_thousand_arms_are_refused_without_yes(tmp_path, monkeypatch):
    text = HEAD
    for factor, key in zip("abcd", ("clip", "learning_rate", "weight_decay", "warmup"), strict=True):
        levels = (f'l{one} = {{ "lm.{key}" = 0.{one + 1} }}' for one in range(9))
        text += f"[factors.{factor}]\n" + "\n".join(levels) + "\n"
    with pytest.raises(ConfigError, match=r"up to 13,122 arms, more than 1,000; say --yes"):
        study_of(tmp_path, text + METRICS)
    monkeypatch.setattr(study_module, "MANY_ARMS", 7)
    with pytest.raises(ConfigError, match="say --yes"):
        study_of(tmp_path)
    assert len(study_of(tmp_path, many=True).arms) == 8


def test_a_failed_arm_leaves_the_others_and_is_shown(finished):
    study, failures, found = finished
    states = {one.arm.name: one.state for one in found}
    assert sorted(states.values()) == ["done"] * 8 + ["failed"] * 4
    assert all(state == ("failed" if "width broken" in name else "done") for name, state in states.items())
    assert all("at least 3 tokens" in line for line in failures.values())
    page = (study.folder / "study.md").read_text()
    assert "## Failed (4)" in page
    assert "* optimizer adamw, width broken, seed 0: lm: " in page
    assert len(read_json(study.folder / "study.json")["arms"]) == 12


def test_what_waits_for_a_failed_step_is_left_out_and_counted(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    none = f'none = {{ "text.text" = "{tmp_path / "empty.txt"}", "text.texts" = {{}} }}'
    study = study_of(tmp_path, TEXT_ALONE.replace('many = { "text.texts" = { stories = 10 } }', none))
    failures = run_study(study, jobs=2)
    found = outcomes(study)
    assert {(one.arm.levels["stories"], one.state) for one in found} == {
        ("few", "done"), ("more", "done"), ("none", "failed")
    }  # fmt: skip
    assert all(one.line.startswith("text: ") for one in found if one.state == "failed")
    assert sum(line.startswith("left out: ") for line in failures.values()) == 6  # two packs of three texts


def test_an_arm_whose_process_dies_is_a_failed_arm(tmp_path, monkeypatch):
    (tmp_path / "dying_part.py").write_text("import os\nos._exit(9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sound").mkdir()
    soundfile.write(tmp_path / "sound" / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    recipe = (
        f'[steps.units]\nstage = "encode"\naudio = "{tmp_path / "sound"}"\nnum_units = 4\nnum_workers = 1\n'
    )
    (tmp_path / "units.toml").write_text(recipe)
    text = """
recipe = "units.toml"
seeds = [0]
[factors.tokenizer]
dying = { "units.tokenizer" = "dying_part:Tokenizer" }
fine = {}
[metrics.units]
step = "units"
result = "num_units"
"""
    study = study_of(tmp_path, text)
    assert len(run_study(study, jobs=1)) == 1
    dying, fine = outcomes(study)
    assert (dying.state, fine.state) == ("failed", "done")
    assert "its process was killed" in dying.line


def test_an_arm_is_the_recipe_with_its_settings(finished, tmp_path):
    study, _, found = finished
    overrides = ["lm.architecture.hidden_size=16", "lm.seed=1"]
    recipe = load_recipe(study.path.parent / "recipe.toml", folder=tmp_path, overrides=overrides)
    made = {step.name: run for step, run, _ in run_recipe(replace(recipe, steps=recipe.steps[:3]))}
    (arm,) = [one for one in found if one.arm.name == WORDS]
    assert arm.metrics["loss"] == made["lm"].results["final_validation_loss"]
    assert made["lm"].fingerprint == read_run(arm.arm.step("lm").out).fingerprint
    assert arm.tokens == made["lm"].results["tokens"]
    assert arm.flops == 6 * made["lm"].results["num_parameters"] * arm.tokens


def test_a_finished_study_is_not_made_again(finished):
    study, _, _ = finished
    fine = replace(study, arms=tuple(arm for arm in study.arms if arm.levels["width"] != "broken"))
    before = {path: path.stat().st_mtime_ns for path in (study.folder / "steps").rglob("run.json")}
    assert run_study(fine, jobs=1) == {}
    assert before == {path: path.stat().st_mtime_ns for path in (study.folder / "steps").rglob("run.json")}
    assert [row.num_steps for row in plan_study(fine)] == [0] * 8


def test_the_plan_counts_shared_steps_once_and_times_what_it_knows(finished, tmp_path):
    fresh = plan_study(study_of(tmp_path))
    assert [row.num_steps for row in fresh] == [3] + [1] * 7
    assert {row.tokens for row in fresh} == {640}
    assert {row.seconds for row in fresh} == {None}
    study, _, _ = finished
    longer = study.path.read_text().replace("seeds = [0, 1]", "seeds = [0, 1, 2]")
    study.path.with_name("longer.toml").write_text(longer)
    rows = plan_study(load_study(study.path.with_name("longer.toml"), folder=study.folder))
    added = [row for row in rows if row.arm.seed == 2 and row.arm.levels["width"] != "broken"]
    assert {row.num_steps for row in added} == {1}
    lasted = [read_run(arm.step("lm").out).seconds for arm in study.arms if arm.levels["width"] == "wide"]
    (wide, _) = [row.seconds for row in added if row.arm.levels["width"] == "wide"]
    assert min(lasted) * 0.5 <= wide <= max(lasted) * 2


def test_a_budget_in_time_is_the_expected_time(tmp_path):
    text = HEAD + '[settings]\n"lm.budget" = "90s"\n' + FACTORS + METRICS
    rows = plan_study(study_of(tmp_path, text))
    assert {row.tokens for row in rows} == {None}
    assert [row.seconds for row in rows] == [None] + [90.0] * 7  # the first also makes its data


def test_parts_of_a_study_share_its_folder_and_make_each_step_once(tmp_path):
    study = study_of(tmp_path, TEXT_ALONE)
    command = [*SLAM, "study", str(study.path), "--folder", str(study.folder)]
    parts = [
        subprocess.Popen(
            [*command, "--shard", f"{part}/2"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        for part in (1, 2)
    ]
    said = "".join(part.communicate(timeout=240)[1] for part in parts)
    assert [part.returncode for part in parts] == [0, 0], said
    made = re.findall(r"\] (\S+): (?:synthesize|pack) in", said)
    assert sorted(made) == sorted({step.out.name for arm in study.arms for step in arm.steps})
    assert all(one.state == "done" for one in write_page(study))


def test_a_killed_study_goes_on(tmp_path):
    study = study_of(tmp_path, TEXT_ALONE)
    command = [*SLAM, "study", str(study.path), "--folder", str(study.folder)]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list((study.folder / "steps").glob("tokens-*/run.json")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    time.sleep(1.5)  # its worker looks for its parent twice a second
    before = {path: path.read_bytes() for path in study.folder.rglob("run.json")}
    assert len(before) < 27
    done = slam("study", study.path, "--folder", study.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"study: {study.folder / 'study.md'}"
    after = {path: path.read_bytes() for path in study.folder.rglob("run.json")}
    assert len(after) == 27
    assert before.items() <= after.items()


def test_the_command_says_what_it_would_do_and_what_is_wrong(tmp_path):
    study = study_of(tmp_path)
    shown = slam("study", study.path, "--folder", study.folder, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "8 arms" in shown.stdout
    assert "5,120" in shown.stdout
    assert not study.folder.exists()
    refused = slam("study", study.path, "--shard", "3/2")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "write I/N" in refused.stderr


def outcomes_of(study, values):
    """Outcomes of a study that nobody ran: arm → loss."""
    return [Outcome(arm, "done", metrics={"loss": values(arm)}) for arm in study.arms]


def test_means_and_paired_differences_are_those_of_scipy(tmp_path):
    study = study_of(tmp_path, HEAD.replace("[0, 1]", "[0, 1, 2, 3]") + FACTORS + METRICS)
    noise = np.random.default_rng(0).normal(size=len(study.arms))
    by_name = dict(zip((arm.name for arm in study.arms), noise, strict=True))
    found = outcomes_of(study, lambda arm: by_name[arm.name])

    def of(optimizer, width):
        words = f"optimizer {optimizer}, width {width}, seed "
        return np.asarray([by_name[words + str(seed)] for seed in range(4)])

    one = next(row for row in summaries(study, found) if row.levels == {"optimizer": "muon", "width": "wide"})
    assert (one.mean, one.deviation, one.n) == pytest.approx(
        (of("muon", "wide").mean(), of("muon", "wide").std(ddof=1), 4)
    )
    rows = {(row.factor, tuple((row.at or {}).values())): row for row in differences(study, found)}
    assert len(rows) == 6
    oracle = stats.ttest_rel(of("muon", "wide"), of("adamw", "wide")).confidence_interval(0.95)
    row = rows["optimizer", ("wide",)]
    assert (row.low, row.high, row.n) == pytest.approx((oracle.low, oracle.high, 4))
    narrow_too = [of(name, "narrow") + of(name, "wide") for name in ("muon", "adamw")]
    oracle = stats.ttest_rel(narrow_too[0] / 2, narrow_too[1] / 2).confidence_interval(0.95)
    row = rows["optimizer", ()]
    assert (row.level, row.against, row.low, row.high) == pytest.approx(
        ("muon", "adamw", oracle.low, oracle.high)
    )


def test_a_seed_that_failed_on_one_side_is_no_pair(tmp_path):
    study = study_of(tmp_path)
    found = [one for one in outcomes_of(study, lambda arm: arm.seed) if one.arm.name != WORDS]
    rows = {(row.factor, tuple((row.at or {}).values())): row for row in differences(study, found)}
    assert (rows["optimizer", ("wide",)].n, rows["optimizer", ("wide",)].low) == (1, None)
    assert rows["optimizer", ("narrow",)].n == 2


LAW = """
recipe = "recipe.toml"
seeds = [0]

[factors.size]
a = {}
b = { "lm.architecture.hidden_size" = 16 }
c = { "lm.architecture.hidden_size" = 24 }
d = { "lm.architecture.hidden_size" = 32 }

[factors.tokens]
a = {}
b = { "lm.budget" = "20 steps" }
c = { "lm.budget" = "40 steps" }
d = { "lm.budget" = "80 steps" }

[factors.data]
plain = {}
better = { "lm.clip" = 1.0 }
""" + METRICS + """
[law]
step = "lm"
metric = "loss"
fit = { data = "plain" }
against = "data"
"""  # fmt: skip
SPEECH = PUBLISHED["speech"]


def law_outcomes(study, finished):
    """Arms on the published law, and of the better data as if their compute were three times as much."""
    template = vars(read_run(finished[0].arms[0].step("lm").out))
    found = []
    for arm in study.arms:
        size = 1e7 * 4 ** "abcd".index(arm.levels["size"])
        tokens = 1e9 * 4 ** "abcd".index(arm.levels["tokens"])
        results = {"num_parameters": size, "tokens": tokens, "epochs": 1.0}
        write_json(arm.step("lm").out / "run.json", template | {"results": results})
        loss = SPEECH.loss(size, tokens)
        if arm.levels["data"] == "better":
            loss = SPEECH.optimal(3 * SPEECH.compute_to(loss)).loss
        found.append(Outcome(arm, "done", metrics={"loss": loss}))
    return found


def test_a_law_over_the_arms_and_what_a_level_is_worth_by_it(finished, tmp_path):
    study = study_of(tmp_path, LAW)
    found = find_law(study, study.file.law, law_outcomes(study, finished))
    rows = found.rows()
    assert rows["num_points"] == 16
    for name in ("E", "A", "B", "alpha", "beta"):
        assert rows["coefficients"][name]["value"] == pytest.approx(getattr(SPEECH, name), rel=1e-3)
    worth = rows["compute_multipliers"]["better"]
    assert worth["low"] <= worth["value"] <= worth["high"]
    assert worth["value"] == pytest.approx(3, rel=1e-3)
    against = rows["compute_multipliers_against_published"]
    assert (against["plain"], against["better"]) == pytest.approx((1, 3))


def test_a_law_of_too_few_arms_is_a_line_on_the_page(finished):
    study, _, _ = finished
    text = study.path.read_text() + '[law]\nstep = "lm"\nmetric = "loss"\n'
    study.path.with_name("law.toml").write_text(text)
    with_law = load_study(study.path.with_name("law.toml"), folder=study.folder)
    with pytest.raises(InputError, match="at least 3 different numbers of"):
        find_law(with_law, with_law.file.law, outcomes(with_law))
    write_page(with_law)
    assert "No law: a scaling law needs at least" in (study.folder / "study.md").read_text()


FULL = [path for path in sorted(STUDIES.glob("*.toml")) if not path.stem.endswith("-demo")]


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*-demo.toml")), ids=lambda path: path.stem)
def test_the_demo_scale_studies_load(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("real", "real-validation"):
        (tmp_path / "data" / name).mkdir(parents=True)
    if not path.stem.startswith("base"):
        study = load_study(path)
        assert study.arms
        # the text LM and all speech are made once for the study, and for others of the same base
        assert len({arm.step("text").out for arm in study.arms}) == 1


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_the_full_scale_studies_load(path, tmp_path, monkeypatch):
    """Also where none of their data is yet: then a dry run says what to bring."""
    monkeypatch.chdir(tmp_path)
    study = load_study(path.resolve(), missing_allowed=True)
    assert len(study.arms) == len(study.cells) * len(study.file.seeds)
    assert path.with_name(f"{path.stem}-demo.toml").exists()
    to_bring = tomllib.loads((STUDIES.parent / "slam.toml").read_text())["data"]
    assert any(f"{name!r}" in line for name in to_bring for line in missing_inputs(study))
    with pytest.raises(ConfigError, match="no step and no path is called"):
        load_study(path.resolve())
