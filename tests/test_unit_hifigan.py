import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional

from slam.audio import Audio
from slam.errors import ConfigError, InputError, MismatchError, SlamError
from slam.units import Units
from slam.vocoders import load_vocoder, unit_hifigan
from slam.vocoders.unit_hifigan import UnitHiFiGAN
from tiny_vocoders import (
    CONFIG,
    MANY_STYLES,
    MANY_VOICES,
    NO_DURATIONS,
    TYPE_2,
    Weights,
    random_weights,
    save_vocoder,
)

HOP = 40  # samples a frame of CONFIG


@dataclass(frozen=True)
class Tokenizer:
    name: str = "twelve"
    num_units: int = 12
    frame_rate: float = 25.0


def load(folder: Path) -> UnitHiFiGAN:
    return load_vocoder("unit-hifigan", Tokenizer(), folder)


def some_units(length: int, seed: int = 0, *, timed: bool = True) -> Units:
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, 12, length).astype(np.uint16)
    return Units(ids, generator.integers(1, 5, length).astype(np.uint16) if timed else None, 25.0)


def speak(folder: Path, units: Units) -> np.ndarray:
    (audio,) = load(folder).decode([units])
    return audio.samples


# The reference: the published equations in float64, one obvious step at a time. Weight norm is multiplied out
# row by row, and a transposed convolution is a convolution of a signal with zeros put between its samples.


def plain(weights: Weights, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    directions, lengths = weights[f"{name}.weight_v"].double(), weights[f"{name}.weight_g"].double()
    rows = [
        float(length) * row / sqrt(float((row * row).sum()))
        for row, length in zip(directions, lengths, strict=True)
    ]
    return torch.stack(rows), weights[f"{name}.bias"].double()


def conv(x: torch.Tensor, weights: Weights, name: str, dilation: int = 1) -> torch.Tensor:
    weight, bias = plain(weights, name)
    reach = dilation * (weight.shape[-1] - 1) // 2
    return functional.conv1d(functional.pad(x, (reach, reach)), weight, bias, dilation=dilation)


def conv_up(x: torch.Tensor, weights: Weights, name: str, rate: int) -> torch.Tensor:
    weight, bias = plain(weights, name)
    kernel = weight.shape[-1]
    spread = torch.zeros(1, x.shape[1], (x.shape[2] - 1) * rate + 1, dtype=x.dtype)
    spread[:, :, ::rate] = x
    margin = kernel - 1 - (kernel - rate) // 2
    return functional.conv1d(functional.pad(spread, (margin, margin)), weight.flip(2).transpose(0, 1), bias)


def leaky(x: torch.Tensor, slope: float) -> torch.Tensor:
    return torch.where(x > 0, x, slope * x)


def spoken_by_hand(config: dict[str, Any], weights: Weights, frames: np.ndarray) -> np.ndarray:
    rows = []
    for unit in frames.tolist():
        row = [weights["dict.weight"][unit]]
        if config.get("multispkr"):
            row.append(weights["spkr.weight"][config.get("speaker", 0)])
        if config.get("multistyle"):
            row.append(weights["style.weight"][config.get("style", 0)])
        rows.append(torch.cat(row))
    x = conv(torch.stack(rows).double().T[None], weights, "conv_pre")
    block = 0
    for stage, rate in enumerate(config["upsample_rates"]):
        x = conv_up(leaky(x, 0.1), weights, f"ups.{stage}", rate)
        heard = []
        for dilations in config["resblock_dilation_sizes"]:
            y = x
            for number, dilation in enumerate(dilations):
                if config["resblock"] == "1":
                    z = conv(leaky(y, 0.1), weights, f"resblocks.{block}.convs1.{number}", dilation)
                    y = y + conv(leaky(z, 0.1), weights, f"resblocks.{block}.convs2.{number}")
                else:
                    y = y + conv(leaky(y, 0.1), weights, f"resblocks.{block}.convs.{number}", dilation)
            heard.append(y)
            block += 1
        x = sum(heard) / len(heard)
    return torch.tanh(conv(leaky(x, 0.01), weights, "conv_post"))[0, 0].numpy()


def log_durations_by_hand(weights: Weights, ids: np.ndarray) -> np.ndarray:
    x = weights["dict.weight"][torch.from_numpy(ids.astype(np.int64))].double()  # [N, width]
    for number in (1, 2):
        kernel = weights[f"dur_predictor.conv{number}.0.weight"].double()
        beside = torch.cat((torch.zeros_like(x[:1]), x, torch.zeros_like(x[:1])))
        x = (
            torch.stack([torch.einsum("oik,ki->o", kernel, beside[at : at + 3]) for at in range(len(ids))])
            + weights[f"dur_predictor.conv{number}.0.bias"]
        )
        x = x.clamp(min=0)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * weights[f"dur_predictor.ln{number}.weight"] + weights[f"dur_predictor.ln{number}.bias"]
    projected = x @ weights["dur_predictor.proj.weight"].double().T + weights["dur_predictor.proj.bias"]
    return projected[:, 0].numpy()


VARIANTS = {
    "type 1": {},
    "type 2": TYPE_2,
    "speakers": MANY_VOICES,
    "another speaker": MANY_VOICES | {"speaker": 2},
    "speakers and styles": MANY_STYLES | TYPE_2 | {"speaker": 1, "style": 3},
    "no durations": NO_DURATIONS,
    # the published rates at 50 Hz
    "five stages": {
        "upsample_rates": [5, 4, 4, 2, 2],
        "upsample_kernel_sizes": [11, 8, 8, 4, 4],
        "upsample_initial_channel": 64,
        "sampling_rate": 8000,
    },
    # whose plain convolutions see as far as the dilated ones
    "a wide block": {
        "upsample_rates": [1],
        "upsample_kernel_sizes": [1],
        "resblock_kernel_sizes": [11],
        "resblock_dilation_sizes": [[1, 1, 1]],
        "sampling_rate": 25,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_sound_is_that_of_the_published_equations(variant: str, tmp_path: Path) -> None:
    config = CONFIG | VARIANTS[variant]
    units = some_units(9)
    expected = spoken_by_hand(config, random_weights(config), units.expand())
    samples = speak(save_vocoder(tmp_path, config), units)
    assert samples.shape == (units.num_frames * config["sampling_rate"] // 25,)
    assert expected.std() > 0.02
    assert np.abs(expected).max() < 0.9999  # else tanh hides what is behind it
    np.testing.assert_allclose(samples, expected, atol=2e-6)


def test_a_block_of_type_2_uses_its_first_two_dilations(tmp_path: Path) -> None:
    save_vocoder(tmp_path, TYPE_2)
    before = speak(tmp_path, some_units(5))
    config = CONFIG | TYPE_2 | {"resblock_dilation_sizes": [[1, 2, 9], [2, 6, 9]]}
    (tmp_path / "hifigan_config.json").write_text(json.dumps(config))
    assert speak(tmp_path, some_units(5)).tobytes() == before.tobytes()


def test_units_without_durations_last_as_long_as_predicted(tmp_path: Path) -> None:
    written = some_units(60, timed=False)
    frames = np.exp(log_durations_by_hand(random_weights(CONFIG), written.ids)) - 1
    assert frames.min() < 0.5  # some would not be heard at all
    assert frames.max() > 3.5
    expected = np.maximum(np.rint(frames), 1).astype(np.uint16)
    spelled = Units(written.ids, expected, 25.0)
    vocoder = load(save_vocoder(tmp_path))
    one, other = vocoder.decode([written, spelled])
    assert len(one.samples) == HOP * spelled.num_frames
    assert one.samples.tobytes() == other.samples.tobytes()


def test_a_duration_beyond_all_bounds_is_cut_to_what_units_can_hold(tmp_path: Path) -> None:
    vocoder = load(save_vocoder(tmp_path))
    vocoder.net["dur_predictor"]["proj"].bias += 200
    lasting = unit_hifigan._durations(vocoder.net["dur_predictor"], torch.zeros(1, 6, 3))  # noqa: SLF001
    assert lasting.tolist() == [65_535] * 3


def test_without_a_duration_predictor_units_must_carry_durations(tmp_path: Path) -> None:
    vocoder = load(save_vocoder(tmp_path, NO_DURATIONS))
    with pytest.raises(ConfigError, match=r"predicts no durations.*give one whose config has dur_predictor"):
        vocoder.decode([some_units(4, timed=False)])
    assert len(vocoder.decode([some_units(4)])[0].samples)


def named_as_now(weights: Weights) -> Weights:
    halves = {"weight_g": "original0", "weight_v": "original1"}
    return {
        f"{stem}.parametrizations.weight.{halves[end]}" if end in halves else f"{stem}.{end}": tensor
        for name, tensor in weights.items()
        for stem, _, end in [name.rpartition(".")]
    }


def multiplied_out(weights: Weights) -> Weights:
    made = {name: tensor for name, tensor in weights.items() if not name.endswith(("_g", "_v"))}
    for name in weights:
        if name.endswith("_v"):
            stem = name.removesuffix(".weight_v")
            made[f"{stem}.weight"] = plain(weights, stem)[0].float()
    return made


LAYOUTS: dict[str, Callable[[Weights, Path], None]] = {
    "bare": torch.save,
    "old format": lambda weights, path: torch.save(
        {"generator": weights}, path, _use_new_zipfile_serialization=False
    ),
    "new names": lambda weights, path: torch.save({"generator": named_as_now(weights)}, path),
    "no weight norm": lambda weights, path: torch.save({"generator": multiplied_out(weights)}, path),
    "safetensors": lambda weights, path: save_file(weights, path.with_suffix(".safetensors")),
    "double precision": lambda weights, path: torch.save({n: t.double() for n, t in weights.items()}, path),
    "another pickle protocol": lambda weights, path: torch.save(weights, path, pickle_protocol=3),
    "with what training kept": lambda weights, path: torch.save({"generator": weights, "steps": 7}, path),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_checkpoint_is_the_same_voice(layout: str, tmp_path: Path) -> None:
    published, other = save_vocoder(tmp_path / "published"), save_vocoder(tmp_path / "other")
    (other / "hifigan.pt").unlink()
    LAYOUTS[layout](random_weights(CONFIG), other / "hifigan.pt")
    np.testing.assert_allclose(speak(other, some_units(8)), speak(published, some_units(8)), atol=2e-6)
    assert {weights.dtype for weights in load(other).net.parameters()} == {torch.float32}


def test_loading_and_speaking_draw_no_random_numbers(tmp_path: Path) -> None:
    save_vocoder(tmp_path)
    state = torch.random.get_rng_state()
    first, second = load(tmp_path), load(tmp_path)
    units = some_units(5, timed=False)
    assert first.decode([units])[0].samples.tobytes() == second.decode([units])[0].samples.tobytes()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(weights.requires_grad for weights in first.net.parameters())


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> UnitHiFiGAN:
    return load(save_vocoder(tmp_path_factory.mktemp("vocoder")))


_UNITS = st.builds(some_units, st.integers(0, 12), st.integers(0, 99), timed=st.booleans())


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(batch=st.lists(_UNITS, max_size=5), data=st.data())
def test_a_sound_never_depends_on_the_batch_that_it_came_in(
    vocoder: UnitHiFiGAN, batch: list[Units], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(batch))))
    together = vocoder.decode([batch[index] for index in order])
    assert len(together) == len(batch)
    for index, audio in zip(order, together, strict=True):
        (alone,) = vocoder.decode([batch[index]])
        assert alone.samples.tobytes() == audio.samples.tobytes()
        assert audio.sample_rate == 1000
        assert audio.samples.dtype == np.float32
        assert np.abs(audio.samples).max(initial=0) <= 1
        if batch[index].durations is not None:
            assert audio.samples.shape == (HOP * batch[index].num_frames,)
        else:
            assert len(audio.samples) >= HOP * len(batch[index])


@pytest.mark.parametrize("changes", [{}, TYPE_2], ids=["type 1", "type 2"])
@pytest.mark.parametrize("chunk", [1, 3, 17, 100])
def test_a_long_utterance_in_chunks_is_the_utterance_as_a_whole(
    changes: dict[str, Any], chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocoder, units = load(save_vocoder(tmp_path, changes)), some_units(40)
    (whole,) = vocoder.decode([units])
    heard = []
    generate = unit_hifigan._generate  # noqa: SLF001

    def counted(settings: Any, net: Any, frames: torch.Tensor) -> torch.Tensor:
        heard.append(len(frames))
        return generate(settings, net, frames)

    monkeypatch.setattr(unit_hifigan, "_CHUNK_SAMPLES", HOP * chunk)
    monkeypatch.setattr(unit_hifigan, "_generate", counted)
    (pieces,) = vocoder.decode([units])
    np.testing.assert_allclose(pieces.samples, whole.samples, atol=2e-6)
    assert len(heard) == -(-units.num_frames // chunk)
    assert max(heard) <= chunk + 2 * vocoder.settings.context


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_context_of_a_chunk_is_all_that_its_samples_depend_on(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    vocoder = load(save_vocoder(tmp_path, changes))
    scale = vocoder.settings.samples_per_frame
    length, at = 121, 60
    frames = torch.zeros(length, dtype=torch.int64)
    one = vocoder._speak(frames)  # noqa: SLF001
    frames[at] = 7
    changed = np.flatnonzero(vocoder._speak(frames) != one) // scale  # noqa: SLF001 - which frames sound otherwise
    assert changed.min() >= at - vocoder.settings.context
    assert changed.max() <= at + vocoder.settings.context
    # and not much more, for each chunk pays for it twice
    assert vocoder.settings.context <= 2 * (at - changed.min()) + 3


def test_no_units_are_no_sound_and_one_frame_is_one_frame(vocoder: UnitHiFiGAN) -> None:
    nothing = np.zeros(0, np.uint16)
    one = Units(np.array([3], np.uint16), np.array([1], np.uint16), 25.0)
    batch = [Units(nothing, nothing, 25.0), Units(nothing, None, 25.0), one]
    assert [len(audio.samples) for audio in vocoder.decode(batch)] == [0, 0, HOP]


def test_units_of_another_tokenizer_are_refused(vocoder: UnitHiFiGAN) -> None:
    with pytest.raises(MismatchError, match=r"units of 50 frames a second; .* speaks 25"):
        vocoder.decode([Units(np.zeros(1, np.uint16), None, 50.0)])
    with pytest.raises(MismatchError, match=r"unit 12: .* speaks units 0 to 11"):
        vocoder.decode([Units(np.array([3, 12], np.uint16), None, 25.0)])


def test_the_folder_is_asked_for_by_its_setting() -> None:
    with pytest.raises(ConfigError, match=r"unit-hifigan needs its weights.*vocoder_from"):
        load_vocoder("unit-hifigan", Tokenizer())


@pytest.mark.parametrize(
    ("tokenizer", "line"),
    [
        (Tokenizer(num_units=500), r"speaks 12 units, the tokenizer 'twelve' has 500; give the vocoder"),
        (Tokenizer(frame_rate=50.0), r"speaks 25 frames a second, the tokenizer 'twelve' makes 50; give"),
    ],
)
def test_a_vocoder_of_other_units_is_refused(tokenizer: Tokenizer, line: str, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=line):
        load_vocoder("unit-hifigan", tokenizer, save_vocoder(tmp_path))


def refused(folder: Path, kind: type[SlamError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        load(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(folder))
    return line


CONFIGS: dict[str, tuple[Any, str]] = {
    "no table": ([1, 2], "no config of a unit HiFi-GAN"),
    "lacks a field": ({"upsample_rates": None}, "upsample_rates"),
    "lacks another": ({"num_embeddings": None}, "num_embeddings"),
    "text for a number": ({"embedding_dim": "6"}, "embedding_dim"),
    "no rate": ({"sampling_rate": 0}, "sampling_rate"),
    "a negative rate": ({"upsample_rates": [5, -4, 2]}, "upsample_rates"),
    "no stages": ({"upsample_rates": [], "upsample_kernel_sizes": []}, "upsample_rates"),
    "a kernel too few": ({"upsample_kernel_sizes": [11, 8]}, "as many kernels as upsample_rates"),
    "a kernel that adds a sample": ({"upsample_kernel_sizes": [11, 7, 4]}, "an even number more"),
    "a kernel that leaves gaps": ({"upsample_kernel_sizes": [3, 8, 4]}, "an even number more"),
    "no channels left": ({"upsample_initial_channel": 4}, "down to nothing"),
    "an even kernel": ({"resblock_kernel_sizes": [3, 6]}, "must be odd"),
    "a row too few": ({"resblock_dilation_sizes": [[1, 3, 5]]}, "resblock_dilation_sizes"),
    "a dilation too few": ({"resblock_dilation_sizes": [[1, 3, 5], [1, 3]]}, "resblock 1 needs 3"),
    "an unknown block": ({"resblock": "3"}, "resblock"),
    "another width": ({"model_in_dim": 80}, "model_in_dim must be 6"),
    "a speaker too many": (MANY_VOICES | {"speaker": 3}, "less than num_speakers"),
    "wide durations": (
        {"dur_predictor_params": CONFIG["dur_predictor_params"] | {"encoder_embed_dim": 5}},
        "encoder_embed_dim must be embedding_dim",
    ),
    "durations over five units": (
        {"dur_predictor_params": CONFIG["dur_predictor_params"] | {"var_pred_kernel_size": 5}},
        "var_pred_kernel_size",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_bad_config_is_answered_in_one_line(case: str, tmp_path: Path) -> None:
    changes, word = CONFIGS[case]
    folder = save_vocoder(tmp_path)
    config = CONFIG | changes if isinstance(changes, dict) else changes
    if isinstance(config, dict):
        config = {name: value for name, value in config.items() if value is not None}
    (folder / "hifigan_config.json").write_text(json.dumps(config))
    line = refused(folder)
    assert "hifigan_config.json: no config of a unit HiFi-GAN" in line
    assert word in line


def test_a_config_that_is_no_json_is_answered_in_one_line(tmp_path: Path) -> None:
    (save_vocoder(tmp_path) / "hifigan_config.json").write_bytes(b'{"resblock": "1", \xff')
    assert "hifigan_config.json: not JSON" in refused(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("f0", True), ("embedder_params", {"embedder_dim": 256})])
def test_a_vocoder_that_needs_more_than_units_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    save_vocoder(tmp_path, {field: value})
    assert f"asks for {field}, which units do not carry" in refused(tmp_path, ConfigError)


def nan(weights: Weights) -> Weights:
    weights["conv_pre.bias"][1] = torch.nan
    return weights


WEIGHTS: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "one lacks": (lambda w: {n: t for n, t in w.items() if n != "ups.1.bias"}, "lacks ups.1.bias; give"),
    "many lack": (
        lambda w: {n: t for n, t in w.items() if not n.startswith("dur_")},
        "lacks dur_predictor.conv1.0.bias and 9 more; give",
    ),
    "one too many": (
        lambda w: w | {"f0.weight": w["dict.weight"]},
        "beyond what the config asks for, f0.weight;",
    ),
    "another shape": (
        lambda w: w | {"dict.weight": torch.zeros(12, 5)},
        "dict.weight has the shape [12, 5], the config asks for [12, 6]",
    ),
    "half a norm": (lambda w: {n: t for n, t in w.items() if n != "conv_pre.weight_g"}, "no weight norm"),
    "a norm of another shape": (lambda w: w | {"conv_pre.weight_g": torch.ones(1, 1, 1)}, "no weight norm"),
    "a norm of no convolution": (lambda w: w | {"conv_pre.weight_v": torch.ones(32)}, "no weight norm"),
    "not finite": (nan, "conv_pre.bias holds values that are not finite"),
    "no direction": (lambda w: w | {"conv_pre.weight_v": torch.zeros(32, 6, 7)}, "not finite"),
    "whole numbers": (lambda w: w | {"conv_pre.bias": torch.ones(32).int()}, "holds no weights"),
    "no tensor": (lambda w: w | {"conv_pre.bias": [1.0] * 32}, "holds no weights"),
    "a list": (lambda w: list(w.values()), "holds no weights"),
    "sparse": (lambda w: w | {"dict.weight": w["dict.weight"].to_sparse()}, "holds no weights"),
    "nothing": (lambda _: {}, "lacks conv_post.bias and"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_the_config_does_not_fit_are_answered_in_one_line(case: str, tmp_path: Path) -> None:
    change, words = WEIGHTS[case]
    torch.save({"generator": change(random_weights(CONFIG))}, save_vocoder(tmp_path) / "hifigan.pt")
    line = refused(tmp_path)
    assert "hifigan.pt: " in line
    assert words in line


class Harm:
    """What runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_checkpoint_that_runs_code_is_refused_and_not_run(is_zip: bool, tmp_path: Path) -> None:  # noqa: FBT001
    mark, path = tmp_path / "harmed", save_vocoder(tmp_path / "vocoder") / "hifigan.pt"
    content = {"generator": random_weights(CONFIG), "more": Harm(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    assert "could run anything; it was not run" in refused(path.parent)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap is one
    assert mark.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.3, 0.9, 0.999])
def test_a_checkpoint_that_was_cut_short_is_answered_in_one_line(
    kept: float, suffix: str, tmp_path: Path
) -> None:
    path = save_vocoder(tmp_path) / "hifigan.pt"
    if suffix == ".safetensors":
        path.unlink()
        path = path.with_suffix(suffix)
        save_file(random_weights(CONFIG), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert path.name in refused(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(junk=st.binary(max_size=80))
def test_a_checkpoint_of_junk_is_answered_in_one_line(tmp_path: Path, junk: bytes) -> None:
    save_vocoder(tmp_path)
    (tmp_path / "hifigan.pt").write_bytes(junk)
    refused(tmp_path)


def test_a_folder_must_hold_one_config_and_one_checkpoint(tmp_path: Path) -> None:
    assert "no such folder of a vocoder" in refused(tmp_path / "nowhere")
    folder = save_vocoder(tmp_path / "vocoder")
    (folder / "readme.txt").write_text("not looked at")
    assert isinstance(load(folder).decode([some_units(3)])[0], Audio)
    (folder / "other.safetensors").touch()
    assert (
        "must hold one checkpoint (.pt, .safetensors) of a vocoder, holds hifigan.pt, other.saf"
        in refused(folder)
    )
    (folder / "other.safetensors").unlink()
    (folder / "more.json").touch()
    assert "must hold one config (.json) of a vocoder, holds hifigan_config.json, more.json" in refused(
        folder
    )
    for path in folder.glob("*.json"):
        path.unlink()
    assert "must hold one config (.json) of a vocoder, holds none" in refused(folder)
