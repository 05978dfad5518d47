"""The recipes for a GPU, end to end at toy size: tiny data in the layouts named, tiny models for names."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from slam.audio import Audio, write_audio
from slam.recipe import Recipe, load_recipe
from slam.run import read_json, read_run
from slam.runner import run_recipe
from slam.tokenizers import hubert
from test_import_benchmark import write_sblimp, write_sounds, write_swuggy
from tiny_speech_models import save_as_published
from tiny_text_models import save_llama, save_whisper
from tiny_vocoders import SPEAKS_25_HZ, save_vocoder

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = ("slam", "slam-hour", "slam-scaled")
RATE = 16_000
KMEANS = "mhubert_base_25hz_cp_mls_cv_sp_fisher_L11_km500.bin"


def write_speech(folder: Path, count: int, *, seed: int, suffix: str = ".flac") -> list[str]:
    """Noise whose colour changes ten times a second; the names of the files."""
    generator = np.random.default_rng(seed)
    names = [f"{number:03d}{suffix}" for number in range(count)]
    for name in names:
        seconds = generator.uniform(1.2, 2.0)
        loudness = np.repeat(generator.uniform(0.01, 0.3, 20), RATE // 10)[: int(seconds * RATE)]
        samples = generator.normal(size=len(loudness)) * loudness
        write_audio(folder / name, Audio(samples.astype(np.float32), RATE))
    return names


def write_data(data: Path) -> None:
    """What the three recipes read, a few files of each, as the makers lay them out."""
    write_speech(data / "librispeech" / "LibriSpeech" / "train-clean-100" / "103" / "1240", 8, seed=0)
    write_speech(data / "librispeech-dev" / "LibriSpeech" / "dev-clean" / "84" / "121123", 3, seed=1)
    for number, name in enumerate(("librilight", "librilight-6k")):
        write_speech(data / name / "100" / "emerald_city_librivox_64kb_mp3", 8, seed=2 + number)
    for number, name in enumerate(("stinystories", "stinystories-300")):
        write_speech(data / name / "train", 8, seed=4 + number, suffix=".wav")
    rows = []
    for number in range(24):
        parts = {"prompt": "once in year {}", "chosen": "all went well", "rejected": "stones can sing"}
        row: dict[str, Any] = {f"{part}_text": text.format(number) for part, text in parts.items()}
        if number == 0:  # which the paper's filter leaves out
            row["chosen_text"] = "on and on and on and on"
        for place, part in enumerate(parts):
            name = f"audio/{number:02d}-{part}.wav"
            generator = np.random.default_rng([number, place])
            samples = generator.normal(0, 0.1 * (1 + place), RATE // 2).astype(np.float32)
            write_audio(data / "spokenswag" / name, Audio(samples, RATE))
            row[f"{part}_path"] = name
        rows.append(row)
    (data / "spokenswag" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_swuggy(data / "sLM21-dataset")
    write_sblimp(data / "sLM21-dataset")
    for name in ("sSC", "tSC"):
        write_sounds(data / name, [f"{n}_{role}.wav" for n in range(3) for role in ("correct", "incorrect")])


def write_models(folder: Path) -> list[str]:
    """Tiny models of the families that the recipes name; the settings that put them in their places."""
    speech, kmeans = save_as_published(folder)
    kmeans.rename(folder / "data" / KMEANS)
    save_vocoder(folder / "data" / "hifigan_lj_mhubert_base_25hz", SPEAKS_25_HZ | {"num_embeddings": 500})
    torch.manual_seed(0)
    base = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=700, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=True, rope_theta=1e6,
        )
    )  # fmt: skip
    base.save_pretrained(folder / "base")
    places = {
        "units-librispeech.model": speech,
        "twist.hub_base": folder / "base",
        "generation.hub_recognizer": save_whisper(folder / "whisper"),
        "generation.hub_lm": save_llama(folder / "llama"),
    }
    return [f'{name}="{place}"' for name, place in places.items()]


SMALL = (
    *("twist.batch_tokens=160", 'twist.budget="10 steps"', 'twist-dpo.budget="10 steps"'),
    *("twist-dpo.batch_pairs=4", "twist-dpo.samples=2", "continuations.num_prompts=2"),
    *("continuations.max_new_units=10", "twist.validations=2", "twist-dpo.validations=2"),
)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("recipes")
    write_data(folder / "data")
    return folder, write_models(folder)


def toy(name: str, overrides: list[str]) -> Recipe:
    return load_recipe(RECIPES / f"{name}.toml", overrides=[*overrides, *SMALL])


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_for_a_gpu_runs_to_its_report_at_toy_size(
    name: str, stand_ins: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, overrides = stand_ins
    monkeypatch.chdir(folder)
    published = dataclasses.replace(hubert.MHUBERT_25HZ, kmeans_sha256=None)  # the toy's centroids are others
    monkeypatch.setattr(hubert, "MHUBERT_25HZ", published)
    recipe = toy(name, overrides)
    assert all(now for _, _, now in run_recipe(recipe))
    steps = {step.name: step for step in recipe.steps}
    lm = AutoModelForCausalLM.from_pretrained(recipe.folder / "twist-dpo", trust_remote_code=False)
    assert lm.config.vocab_size == 502
    assert lm.config.rope_parameters["rope_theta"] == 10_000
    tokens = read_run(steps["tokens"].out)
    assert tokens is not None
    assert set(tokens.inputs) == {"train.0", "train.1", "train.2", "validation.0"}
    preferences = read_run(steps["preferences"].out)
    assert preferences is not None
    assert preferences.results["num_pairs"] == 23
    assert preferences.results["num_repetitive"] == 1
    rows = read_json(recipe.folder / "results.json")
    scored = {row["benchmark"] for row in rows if row["metric"] == "accuracy"}
    assert scored == {"swuggy-dev", "sblimp-dev", "sSC", "tSC"}
    spoken = read_json(steps["generation"].out / "results.json")
    assert {row["n"] for row in spoken if row["metric"] == "genppl"} == {2}
    assert (recipe.folder / "report.html").is_file()
