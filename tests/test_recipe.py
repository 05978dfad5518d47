import json
from pathlib import Path

import numpy as np
import pytest

import toy_language
from slam.errors import ConfigError, InputError, SlamError
from slam.recipe import load_recipe
from slam.run import read_run, write_json
from slam.runner import run_recipe

TOY = Path(__file__).parent / "toy.toml"
SMALL = """
[steps.text]
stage = "synthesize"
texts = { stories = 3 }
text_only = true

[steps.tokens]
stage = "pack"
train = ["text"]
validation_share = 0.4

[steps.other-text]
stage = "synthesize"
texts = { stories = 4 }
text_only = true
seed = 5

[steps.other-tokens]
stage = "pack"
train = ["text", "other-text"]
"""


def recipe_of(tmp_path, text, **options):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return load_recipe(path, **{"folder": tmp_path / "work"} | options)


def made(recipe):
    return [step.name for step, _, now in run_recipe(recipe) if now]


def one_step(*lines):
    return "\n".join(["[steps.only]", 'stage = "synthesize"', "texts = { words = 3 }", *lines])


def test_steps_keep_their_order_and_their_inputs_become_folders(tmp_path):
    recipe = load_recipe(TOY, folder=tmp_path)
    names = [step.name for step in recipe.steps]
    assert names[:3] == ["speech", "preference-speech", "benchmark-speech"]
    assert names[-1] == "report"
    by_name = {step.name: step for step in recipe.steps}
    assert by_name["units"].config.audio == tmp_path / "speech"
    assert by_name["tokens"].config.train == (tmp_path / "units",)
    assert by_name["scores"].config.models["twist-dpo"] == tmp_path / "twist-dpo"
    assert list(by_name["report"].config.runs) == names[:-1]
    assert by_name["twist"].config.architecture.hidden_size != 32  # set for the text LM alone
    assert by_name["text-lm"].config.architecture.hidden_size == 32


def test_a_recipe_says_where_its_folders_go_unless_told_otherwise(tmp_path):
    text = one_step()
    assert recipe_of(tmp_path, 'folder = "here"\n' + text, folder=None).folder == Path("here")
    assert recipe_of(tmp_path, text, folder=None).folder == Path("work") / "recipe"
    assert recipe_of(tmp_path, 'folder = "here"\n' + text, folder=tmp_path).folder == tmp_path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('voice = ["en"]', "unknown key 'voice'; did you mean 'voices'?"),
        ("sed = 3", "unknown key 'sed'; did you mean 'seed'?"),
        ("zzzzzz = 3", "unknown key 'zzzzzz'; known: text"),
        ('seed = "five"', "seed"),
        ('text = "speach"', "no step and no path is called 'speach'"),
        ('text = "later"', "refers to 'later', which comes later; move it before this step"),
        ('text = "only"', "refers to 'only'"),
    ],
)
def test_what_cannot_be_meant_in_a_step_is_refused_and_named(tmp_path, line, said):
    with pytest.raises(ConfigError) as caught:
        recipe_of(tmp_path, one_step(line) + "\n" + SMALL.replace("steps.text", "steps.later"))
    assert said in str(caught.value)
    assert "step 'only'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no steps"),
        ("steps = 3", "holds no steps"),
        ("[steps]", "holds no steps"),
        ("[step.one]", "unknown key 'step'; did you mean 'steps'?"),
        ("[steps.one]\nbudget = 1", "name its stage"),
        ("[steps]\none = 3", "name its stage"),
        ('[steps.one]\nstage = "pretrian"', "did you mean 'pretrain'?"),
        ("[steps.one", "not TOML"),
        ('[steps.one]\nstage = "pack"', "train"),
        ('[steps.one]\nstage = "pretrain"\nshards = "."', "budget"),
        ('[steps.one]\nstage = "pretrain"\nshards = "."\nbudget = "24:00"', "write a number with its unit"),
        (
            '[steps.one]\nstage = "pretrain"\nshards = "."\nbudget = "1h"\narchitecture = { hidden = 3 }',
            "unknown key 'hidden'; did you mean 'hidden_size'?",
        ),
        ('[steps."../out"]\nstage = "pack"\ntrain = ["."]', "'../out'"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused_in_one_line(tmp_path, text, said):
    with pytest.raises(SlamError) as caught:
        recipe_of(tmp_path, text)
    assert said in str(caught.value)
    assert str(tmp_path / "recipe.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such recipe"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(InputError, match="no such recipe"):
        load_recipe(tmp_path)


def test_settings_can_be_overridden_on_the_command_line(tmp_path):
    recipe = load_recipe(
        TOY,
        folder=tmp_path,
        overrides=[
            "speech.seed=7",
            "speech.texts.stories = 2",
            'speech.voices=["en-gb", "de"]',
            "twist.budget=2M tokens",
            'random.initialization="random"',
            "text-lm.architecture.num_layers=3",
        ],
    )
    by_name = {step.name: step.config for step in recipe.steps}
    assert by_name["speech"].seed == 7
    assert by_name["speech"].texts == {"stories": 2, "sentences": 6, "words": 6}
    assert by_name["speech"].voices == ("en-gb", "de")
    assert by_name["twist"].budget == "2M tokens"  # a bare string needs no quotes
    assert by_name["text-lm"].architecture.num_layers == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=3", "STEP.KEY=VALUE"),
        ("speech.seed", "STEP.KEY=VALUE"),
        ("speach.seed=3", "did you mean 'speech'?"),
        ("speech.sede=3", "did you mean 'seed'?"),
        ("speech.seed=three", "seed"),
        ("speech.seed.deep=3", "seed"),
        ("twist.budget.deep=3", "budget"),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(tmp_path, override, said):
    with pytest.raises(ConfigError) as caught:
        load_recipe(TOY, folder=tmp_path, overrides=[override])
    assert said in str(caught.value)


def test_a_recipe_is_made_once_and_a_changed_step_remade_with_its_dependants_alone(tmp_path):
    assert made(recipe_of(tmp_path, SMALL)) == ["text", "tokens", "other-text", "other-tokens"]
    assert made(recipe_of(tmp_path, SMALL)) == []
    assert made(recipe_of(tmp_path, SMALL, overrides=["other-text.seed=6"])) == ["other-text", "other-tokens"]
    assert made(recipe_of(tmp_path, SMALL, overrides=["other-text.seed=6"])) == []
    assert made(recipe_of(tmp_path, SMALL, overrides=["other-text.seed=6", "tokens.seed=1"])) == ["tokens"]
    text = recipe_of(tmp_path, SMALL, overrides=["text.texts.stories=5"])
    assert made(text) == ["text", "tokens", "other-text", "other-tokens"]  # other-text goes back to its seed
    assert json.loads((text.folder / "text" / "run.json").read_text())["results"]["num_utterances"] == 5


def test_a_step_whose_input_outside_the_recipe_changed_is_made_again(tmp_path):
    source = tmp_path / "mine.txt"
    source.write_text("one line\nanother line\na third\n")
    text = f'[steps.mine]\nstage = "synthesize"\ntext = "{source}"\ntext_only = true\n'
    assert made(recipe_of(tmp_path, text)) == ["mine"]
    assert made(recipe_of(tmp_path, text)) == []
    source.write_text("one line\nanother line\na third\nand a fourth\n")
    assert made(recipe_of(tmp_path, text)) == ["mine"]


def test_a_step_that_was_deleted_or_never_finished_is_made_again(tmp_path):
    recipe = recipe_of(tmp_path, SMALL)
    run_recipe(recipe)
    run = json.loads((recipe.folder / "tokens" / "run.json").read_text())
    (recipe.folder / "tokens" / "run.json").unlink()
    started = {"stage": "pack", "fingerprint": run["fingerprint"], "seconds": 100.0, "peak": 7}
    write_json(recipe.folder / "tokens" / "started.json", started)
    assert made(recipe_of(tmp_path, SMALL)) == ["tokens"]
    assert read_run(recipe.folder / "tokens").seconds >= 100  # of both sittings


def test_a_folder_that_is_no_run_of_ours_is_never_deleted(tmp_path):
    precious = tmp_path / "work" / "text" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(InputError, match="is not empty and no run of slam"):
        run_recipe(recipe_of(tmp_path, SMALL))
    assert precious.read_text() == "years of work"


def test_a_failing_step_leaves_the_ones_before_it_done_and_no_result_of_its_own(tmp_path):
    text = SMALL + '\n[steps.units]\nstage = "encode"\naudio = "text"\n'
    with pytest.raises(InputError, match="text without sound"):
        run_recipe(recipe_of(tmp_path, text))
    assert read_run(tmp_path / "work" / "tokens") is not None
    assert read_run(tmp_path / "work" / "units") is None
    assert made(recipe_of(tmp_path, SMALL)) == []


def test_an_empty_corpus_is_refused(tmp_path):
    toy_language.write_units(tmp_path / "units", {"silent": np.zeros(0, np.uint16)})
    text = f'[steps.tokens]\nstage = "pack"\ntrain = ["{tmp_path / "units"}"]\n'
    with pytest.raises(InputError, match="nothing to pack"):
        run_recipe(recipe_of(tmp_path, text))
