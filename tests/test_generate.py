from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import toy_language
from slam.errors import ConfigError, InputError, MismatchError
from slam.generate import GenerateConfig, find_prompts, generate
from slam.model import SpeechLM
from slam.run import read_json, read_json_lines, write_json_lines
from slam.tokenizers import load_tokenizer
from slam.units import Units, read_units
from slam.vocoders import load_vocoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("generate")
    for seed in (0, 1):
        lm = toy_language.new_toy_lm(seed)
        with torch.no_grad():
            for weight in lm.parameters():
                weight.mul_(6 if weight.ndim > 1 else 1)  # so that likelier units are much likelier
        toy_language.write_lm(root / f"lm-{seed}", lm)
    named = {f"said-{n}": ids for n, ids in enumerate(toy_language.utterances(9, shortest=8))}
    toy_language.write_units(root / "units", named)
    toy_language.write_pairs(root / "pairs", toy_language.counting_pairs(5))
    return root


def config_of(folders, **changes):
    chosen = {
        "models": {"first": folders / "lm-0", "second": folders / "lm-1"},
        "prompts": folders / "units",
        "num_prompts": 3,
        "prompt_seconds": 0.16,  # four frames
        "max_new_units": 12,
    }
    return GenerateConfig(**chosen | changes)


@pytest.fixture(scope="module")
def made(folders):
    generate(config_of(folders), folders / "made")
    return folders / "made"


def continuations(folder):
    rows = read_json_lines(folder / "continuations.jsonl")
    return {(row["model"], row["prompt"]): row["units"] for row in rows if row["model"] is not None}


def test_every_prompt_and_continuation_has_a_row_and_a_playable_sound(made):
    rows = read_json_lines(made / "continuations.jsonl")
    assert len(rows) == 3 * (1 + 2)
    assert [row["model"] for row in rows] == [None] * 3 + ["first"] * 3 + ["second"] * 3
    assert len({row["audio"] for row in rows}) == len(rows)
    assert {path.name for path in made.glob("*.wav")} == {row["audio"] for row in rows}
    for row in rows:
        sound = soundfile.info(made / row["audio"])
        samples, _ = soundfile.read(made / row["audio"])
        assert (sound.samplerate, sound.channels, sound.subtype) == (16_000, 1, "PCM_16")
        assert len(samples) > 0
        assert np.isfinite(samples).all()
        assert 0.001 < np.abs(samples).max() <= 1
        if row["model"] is not None:
            assert row["num_units"] == len(row["units"])
            assert sound.frames / sound.samplerate == pytest.approx(row["seconds"])
            # two frames of 40 ms a unit is what this vocoder was told they last
            assert row["seconds"] == pytest.approx((4 + row["num_units"]) * 2 / 25)


def test_the_declared_rate_is_the_files_rate(folders, made):
    assert generate(config_of(folders), made).results["sample_rate"] == 16_000


def test_prompts_are_spread_over_the_folder_and_cut_to_their_seconds(folders):
    units = read_units(folders / "units")
    found = find_prompts(units, config_of(folders)).taken
    assert [one.id for one in found] == ["said-0", "said-4", "said-8"]
    for one in found:
        assert one.units.expand().tolist() == units.by_name()[one.id].expand()[:4].tolist()
    whole = find_prompts(units, config_of(folders, prompt_seconds=0)).taken
    assert [one.units.num_frames for one in whole] == [units[n].num_frames for n in (0, 4, 8)]
    every = find_prompts(units, config_of(folders, num_prompts=100)).taken
    assert [one.id for one in every] == list(units.names)


def test_the_first_prompts_come_in_the_folders_order(folders):
    units = read_units(folders / "units")
    found = find_prompts(units, config_of(folders, selection="first", num_prompts=4)).taken
    assert [one.id for one in found] == ["said-0", "said-1", "said-2", "said-3"]


def test_the_prompts_of_pairs_are_what_stands_before_the_seam(folders):
    units = read_units(folders / "pairs")
    found = find_prompts(units, config_of(folders, num_prompts=9, prompt_seconds=0)).taken
    expected = {pair[0]: list(pair[3]) for pair in toy_language.counting_pairs(5)}
    assert {one.id: one.units.ids.tolist() for one in found} == expected


def test_or_they_are_cut_from_whole_better_sides_where_no_seam_is_known(folders):
    units = read_units(folders / "pairs")
    config = config_of(folders, prompts_from="chosen", num_prompts=9)
    found = find_prompts(units, config).taken
    whole = units.by_name()
    for one in found:
        assert one.units.expand().tolist() == whole[f"{one.id}-chosen"].expand()[:4].tolist()
    assert len(found) == 5


def test_what_is_too_short_to_be_a_prompt_is_left_out_and_counted(folders):
    units = read_units(folders / "units")
    seconds = sorted(units[n].num_frames / 25 for n in range(9))
    found = find_prompts(units, config_of(folders, min_seconds=seconds[4], num_prompts=100))
    assert found.num_short == sum(one < seconds[4] for one in seconds)
    assert len(found) == 9 - found.num_short
    with pytest.raises(InputError, match="none of 9 prompts lasts 99 seconds"):
        find_prompts(units, config_of(folders, min_seconds=99))


def test_prompts_end_with_the_word_nearest_to_their_seconds(folders, tmp_path):
    units = read_units(folders / "units")
    rows = [
        {"id": name, "start": start, "end": end, "label": "w"}
        for name in units.names
        for start, end in ((0.0, 0.08), (0.08, 0.2), (0.2, 0.32))
        if name != "said-3"
    ]
    write_json_lines(tmp_path / "labels.jsonl", rows)
    found = find_prompts(units, config_of(folders, word_ends=tmp_path / "labels.jsonl", num_prompts=100))
    assert {one.units.num_frames for one in found.taken} == {5}  # 0.2 s is nearer to 0.16 than 0.08 is
    assert found.without_words == ("said-3",)


def test_a_continuation_may_also_be_spoken_alone(folders, tmp_path):
    generate(config_of(folders, alone=True), tmp_path / "made")
    rows = [r for r in read_json_lines(tmp_path / "made" / "continuations.jsonl") if r["model"] is not None]
    for row in rows:
        if row["units"]:
            found = soundfile.info(tmp_path / "made" / row["alone"])
            assert found.frames / found.samplerate == pytest.approx(row["alone_seconds"])
            assert row["alone_seconds"] < row["seconds"]
        else:
            assert row["alone"] is None


def test_a_continuation_is_the_same_whichever_prompts_are_beside_it(folders, made, tmp_path):
    generate(config_of(folders, num_prompts=9), tmp_path / "all")
    generate(config_of(folders, num_prompts=5, models={"second": folders / "lm-1"}), tmp_path / "five")
    alone, every, five = (continuations(folder) for folder in (made, tmp_path / "all", tmp_path / "five"))
    for key, units in alone.items():
        assert every[key] == units
    for key, units in five.items():
        assert every[key] == units
    assert len({tuple(units) for units in every.values()}) > 9  # they are not all one and the same


def test_sounds_made_together_are_those_made_alone(folders, made):
    """A vocoder's batch of like length, against one call for each utterance."""
    vocoder = load_vocoder("griffin-lim", load_tokenizer(folders / "units" / "tokenizer"))
    rows = read_json_lines(made / "continuations.jsonl")
    prompts = {row["prompt"]: row["units"] for row in rows if row["model"] is None}
    assert len({row["num_units"] for row in rows}) > 1
    for row in rows:
        if row["model"] is not None:
            ids = np.array(prompts[row["prompt"]] + row["units"], np.uint16)
            (alone,) = vocoder.decode([Units(ids, None, toy_language.FRAME_RATE)])
            samples, _ = soundfile.read(made / row["audio"], dtype="float32")
            assert np.abs(samples - alone.samples).max() <= 2 / 2**15


@pytest.mark.parametrize("setting", [{"top_p": 0.3}, {"min_p": 0.9}, {"no_repeat_ngram": 1}])
def test_every_way_to_draw_reaches_the_model(folders, made, tmp_path, setting):
    """At few words the setting leaves, the draw differs; no unit twice is the one that can be seen."""
    generate(config_of(folders, **setting), tmp_path / "other")
    found = continuations(tmp_path / "other")
    assert found != continuations(made)
    if "no_repeat_ngram" in setting:
        assert all(len(set(units)) == len(units) for units in found.values())


def test_a_stream_says_the_same_and_is_timed(folders, made, tmp_path):
    run = generate(config_of(folders, stream=True, max_new_units=40, alone=True), tmp_path / "made")
    rows = [r for r in read_json_lines(tmp_path / "made" / "continuations.jsonl") if r["model"] is not None]
    assert any(row["num_units"] > 16 for row in rows)  # in several chunks
    for row in rows:
        if row["units"]:
            streamed = soundfile.info(tmp_path / "made" / row["stream"])
            assert streamed.frames / streamed.samplerate == pytest.approx(row["alone_seconds"])
            assert 0 < row["seconds_to_first_sound"] <= row["real_time_factor"] * row["alone_seconds"] * 1.001
        else:
            assert row["stream"] is None
    for key in ("seconds_to_first_sound", "real_time_factor"):
        assert run.results[key] > 0
        assert key not in read_json(made / "run.json")["results"]


def test_another_seed_gives_other_continuations(folders, made, tmp_path):
    generate(config_of(folders, seed=1), tmp_path / "other")
    assert continuations(tmp_path / "other") != continuations(made)


def test_prompts_of_another_tokenizer_are_refused(folders, tmp_path):
    lm = SpeechLM(toy_language.new_toy_lm(), toy_language.VOCABULARY, "toy", "f" * 16)
    lm.save(tmp_path / "lm")
    with pytest.raises(MismatchError, match="encode with the model's tokenizer"):
        generate(config_of(folders, models={"other": tmp_path / "lm"}), tmp_path / "out")


def test_a_folder_without_prompts_is_refused(folders, tmp_path):
    toy_language.write_units(tmp_path / "units", {"silent": []})
    with pytest.raises(InputError, match="holds no prompts"):
        generate(config_of(folders, prompts=tmp_path / "units"), tmp_path / "out")


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": {}},
        {"models": {"a/b": "x"}},
        {"models": {"prompt": "x"}},
        {"num_prompts": 0},
        {"max_new_units": 0},
        {"models": {"a": "x", "a-stream": "y"}, "stream": True},
        {"top_k": 0},
        {"temperature": -0.1},
        {"repetition_penalty": 0.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"no_repeat_ngram": -1},
        {"temperature": float("nan")},
        {"prompt_seconds": -1.0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(folders, wrong):
    with pytest.raises(ConfigError):
        replace(config_of(folders), **wrong)
