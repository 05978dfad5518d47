import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.cluster import MiniBatchKMeans
from transformers import AutoModel, HubertForCTC, Wav2Vec2FeatureExtractor

from conformance import assert_same_units, check_tokenizer
from conftest import sound, write_recordings
from reference import files_of
from slam.audio import Audio, read_audio, write_audio
from slam.encode import EncodeConfig, encode
from slam.errors import ConfigError, InputError, MismatchError, SlamError
from slam.run import read_json, read_json_lines
from slam.tokenizers import load_tokenizer
from slam.tokenizers.centroids import fit_centroids, read_centroids
from slam.tokenizers.hubert import HUBERT_BASE_L9, MHUBERT_25HZ, Hubert
from slam.tokenizers.speech_features import open_features
from slam.units import deduplicate, read_units
from tiny_speech_models import FAMILIES, LAYERS, WIDTH, save_as_published, save_model

RECORDINGS = [sound(1.3, 100), sound(2.0, 101), sound(1.1, 102, rate=22_050)]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each family; large ones normalise, as the published ones do. Not to be written to."""
    root = tmp_path_factory.mktemp("models")
    return {name: save_model(root / name, name, normalize="large" in name) for name in FAMILIES}


@pytest.fixture(scope="session")
def base(models: dict[str, Path]) -> Path:
    return models["hubert-base"]


@pytest.fixture(scope="session")
def tokenizer(base: Path) -> Hubert:
    return fitted(base)


@pytest.fixture
def centroids(tmp_path: Path) -> Path:
    """A file of nine centroids that fit the models."""
    path = tmp_path / "given.safetensors"
    save_file({"centroids": np.random.default_rng(1).normal(size=(9, WIDTH)).astype(np.float32)}, path)
    return path


def fitted(model: Path, *, layer: int = 3, num_units: int = 16, seed: int = 0, **more: object) -> Hubert:
    recordings = (sound(2.0, number) for number in range(4))
    return Hubert.fit(recordings, num_units=num_units, seed=seed, layer=layer, model=model, **more)


def hidden_states(
    folder: Path, audio: Audio, padding: tuple[int, int] = (0, 0), *, normalize: bool | None = None
) -> tuple[torch.Tensor, ...]:
    """What transformers alone makes of one recording: every layer's frames `[F, width]`."""
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    if normalize is not None:
        extractor.do_normalize = normalize
    inputs = extractor(audio.samples, sampling_rate=16_000, return_tensors="pt").input_values
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        output = model(torch.nn.functional.pad(inputs, padding), output_hidden_states=True)
    return tuple(state[0] for state in output.hidden_states)


@pytest.fixture
def one_thread() -> object:
    """transformers sums in the order of one thread, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_bit_for_bit_that_of_transformers(family: str, models: dict[str, Path]) -> None:
    for audio in RECORDINGS[:2]:
        states = hidden_states(models[family], audio)
        assert len(states) == LAYERS + 1
        for layer in range(1, LAYERS + 1):
            frames = open_features(str(models[family]), layer=layer)(audio)
            assert torch.equal(frames, states[layer])
        assert not torch.allclose(states[1], states[2], atol=1e-2)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", FAMILIES)
def test_units_are_the_nearest_centroids_of_transformers_frames(family: str, models: dict[str, Path]) -> None:
    tokenizer = fitted(models[family])
    assert tokenizer.frame_rate == (25 if family == "mhubert-25hz" else 50)
    for audio, units in zip(RECORDINGS[:2], tokenizer.encode(RECORDINGS[:2]), strict=True):
        frames = hidden_states(models[family], audio)[3].double()
        nearest = torch.cdist(frames, torch.from_numpy(tokenizer.centroids).double()).argmin(dim=1)
        assert_same_units(units, deduplicate(nearest.numpy(), tokenizer.frame_rate))
        assert len(set(units.ids.tolist())) > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_conforms(family: str, models: dict[str, Path], tmp_path: Path) -> None:
    check_tokenizer(fitted(models[family]), tmp_path, RECORDINGS)


@settings(max_examples=15, deadline=None, database=None)
@given(data=st.data())
def test_a_recording_in_any_company_has_the_units_that_it_has_alone(
    data: st.DataObject, tokenizer: Hubert
) -> None:
    seconds = data.draw(st.lists(st.floats(0.001, 1.5), min_size=1, max_size=6))
    batch = [sound(length, number) for number, length in enumerate(seconds)]
    solo = [tokenizer.encode([audio])[0] for audio in batch]
    with ThreadPoolExecutor(3) as workers:
        beside = list(workers.map(lambda audio: tokenizer.encode([audio])[0], batch))
    for one, two, three in zip(solo, tokenizer.encode(batch), beside, strict=True):
        assert_same_units(one, two)
        assert_same_units(one, three)


@pytest.mark.parametrize("family", ["hubert-base", "wavlm-large"])
def test_the_number_of_threads_changes_no_bit(family: str, models: dict[str, Path]) -> None:
    features = open_features(str(models[family]), layer=4)
    audio = sound(6.0, 3)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(features(audio))
            for _ in range(4):  # new workers, which have not met torch yet, begin while others compute
                with ThreadPoolExecutor(3) as workers:
                    found += workers.map(features, [audio] * 6)
                    assert set(workers.map(lambda _: torch.get_num_threads(), range(6))) == {threads}
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in found:
        assert torch.equal(found[0], other)


def test_on_an_accelerator_fp32_is_fp32_and_only_there(base: Path) -> None:
    features = open_features(str(base), layer=1)
    away = dataclasses.replace(features, model=SimpleNamespace(device=torch.device("meta")))
    before = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    try:
        with away.exact(), away.exact():
            assert not torch.backends.cudnn.allow_tf32
            assert torch.backends.cudnn.deterministic
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32 == before
        assert not torch.backends.cudnn.deterministic
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_layers_below_are_loaded_and_run(
    family: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = open_features(str(models[family]), layer=2)
    kind = type(features.model.encoder.layers[0])
    run, forward = [], kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda layer, *a, **k: (run.append(layer), forward(layer, *a, **k))[1]
    )
    features(sound(0.5, 1))
    assert run == list(features.model.encoder.layers)
    assert len(run) == 2
    assert not features.model.training
    assert all(weights.dtype == torch.float32 for weights in features.model.parameters())


@pytest.mark.parametrize("padding", [(0, 0), (40, 40)])
@pytest.mark.parametrize("family", ["hubert-base", "mhubert-25hz"])
def test_frames_are_counted_exactly(family: str, padding: tuple[int, int], models: dict[str, Path]) -> None:
    features = open_features(str(models[family]), layer=1, padding=padding)
    field = 400 if family == "hubert-base" else 720
    hop = 320 if family == "hubert-base" else 640
    for samples in (0, 1, 15, field - 81, field - 80, field - 1, field, field + hop - 1, field + hop, 16_000):
        frames = features(Audio(np.ones(samples, np.float32) * 0.1, 16_000))
        expected = max(0, (samples + sum(padding) - field) // hop + 1) if samples else 0
        assert len(frames) == features.num_frames(samples) == expected
    assert features.frame_rate == 16_000 / hop


def test_fitting_is_a_function_of_recordings_and_seed(base: Path) -> None:
    one, again, other = (fitted(base, seed=seed).fingerprint for seed in (1, 1, 2))
    assert one == again != other


def test_frames_to_fit_on_are_drawn_evenly_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slam.tokenizers.centroids._MIN_FRAMES", 300)
    monkeypatch.setattr("slam.tokenizers.centroids._FRAMES_PER_UNIT", 1)
    seen = []
    monkeypatch.setattr(MiniBatchKMeans, "fit", lambda _, frames: seen.append(frames))
    with pytest.raises(AttributeError, match="cluster_centers_"):
        fit_centroids((np.full((100, 2), n, np.float32) + np.arange(100)[:, None] / 1000 for n in range(40)),
                      2, num_units=2, seed=0)  # fmt: skip
    counts = np.bincount(seen[0][:, 0].astype(int), minlength=40)
    assert counts.sum() == 300
    assert counts.min() >= 1
    assert counts.max() <= 20
    assert (np.diff(seen[0][:, 0]) > 0).all()


def test_the_fingerprint_is_of_everything_that_decides_a_unit(base: Path, tmp_path: Path) -> None:
    first = fitted(base)
    found = {
        first.fingerprint,
        dataclasses.replace(first, centroids=first.centroids + 1e-6).fingerprint,
        dataclasses.replace(first, features=open_features(str(base), layer=2)).fingerprint,
        dataclasses.replace(first, features=open_features(str(base), layer=3, normalize=True)).fingerprint,
        dataclasses.replace(first, features=open_features(str(base), layer=3, padding=(40, 40))).fingerprint,
        dataclasses.replace(
            first, features=open_features(str(save_model(tmp_path / "other", seed=1)), layer=3)
        ).fingerprint,
    }
    assert len(found) == 6
    eager = json.loads((base / "config.json").read_text()) | {"num_attention_heads": 4}
    shutil.copytree(base, tmp_path / "heads")
    (tmp_path / "heads" / "config.json").write_text(json.dumps(eager))
    assert open_features(str(tmp_path / "heads"), layer=3).digest != first.features.digest


def changed_weights(folder: Path, name: str) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name] + np.float32(1e-3)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_the_digest_is_of_the_weights_that_are_run(base: Path, tmp_path: Path) -> None:
    digest = open_features(str(base), layer=2).digest
    above = changed_weights(
        Path(shutil.copytree(base, tmp_path / "above")), "encoder.layers.2.attention.k_proj.bias"
    )
    below = changed_weights(
        Path(shutil.copytree(base, tmp_path / "below")), "encoder.layers.1.attention.k_proj.bias"
    )
    assert open_features(str(above), layer=2).digest == digest
    assert open_features(str(below), layer=2).digest != digest
    headed = HubertForCTC.from_pretrained(base, vocab_size=5)
    headed.save_pretrained(tmp_path / "ctc")
    assert open_features(str(tmp_path / "ctc"), layer=2, normalize=False).digest == digest


def test_a_saved_tokenizer_finds_its_model_from_anywhere(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base, tmp_path / "here" / "model")
    monkeypatch.chdir(tmp_path / "here")
    tokenizer = fitted(Path("model"))
    tokenizer.save(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint
    about = read_json(tmp_path / "saved" / "tokenizer.json")
    assert about["model"] == str(tmp_path / "here" / "model")
    assert (about["layer"], about["num_units"], about["frame_rate"]) == (3, 16, 50.0)

    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(
        InputError, match=r"no such folder of a model; .*tokenizer.json names it, write there"
    ):
        load_tokenizer(tmp_path / "saved")
    about["model"] = str(tmp_path / "there" / "model")
    (tmp_path / "saved" / "tokenizer.json").write_text(json.dumps(about))
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint

    changed_weights(tmp_path / "there" / "model", "encoder.layers.0.layer_norm.bias")
    with pytest.raises(
        MismatchError, match=r"there/model: its weights have the digest \w{16}, .* was made with"
    ):
        load_tokenizer(tmp_path / "saved")


@pytest.mark.parametrize("key", ["layer", "normalize", "padding", "num_units"])
def test_a_changed_setting_is_noticed(key: str, tokenizer: Hubert, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    about = read_json(tmp_path / "tokenizer.json")
    about[key] = {"layer": 2, "normalize": True, "padding": [1, 0], "num_units": "no"}[key]
    (tmp_path / "tokenizer.json").write_text(json.dumps(about))
    if key == "num_units":  # said for the reader; what holds is the number of centroids
        assert load_tokenizer(tmp_path).num_units == 16
    else:
        with pytest.raises(MismatchError, match=r"digest|fingerprint"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "npy", "joblib", "saved"])
def test_centroids_are_taken_from_a_file(kind: str, base: Path, tokenizer: Hubert, tmp_path: Path) -> None:
    path = tmp_path / f"km.{kind}"
    if kind == "safetensors":
        save_file({"centroids": tokenizer.centroids}, path)
    elif kind == "npy":
        np.save(path, tokenizer.centroids.astype(np.float64))
    elif kind == "joblib":
        model = MiniBatchKMeans(16, n_init=1, random_state=0).fit(tokenizer.centroids)
        model.cluster_centers_ = tokenizer.centroids
        joblib.dump(model, path)
    else:
        tokenizer.save(tmp_path)
        path = tmp_path / "kmeans.safetensors"
    given = Hubert.fit(iter([]), num_units=100, seed=0, layer=3, model=base, kmeans=path)
    assert given.fingerprint == tokenizer.fingerprint
    assert given.origin["file"] == path.name
    given.save(tmp_path / "converted")
    assert load_tokenizer(tmp_path / "converted").fingerprint == tokenizer.fingerprint
    converted, origin = read_centroids(tmp_path / "converted" / "kmeans.safetensors")
    np.testing.assert_array_equal(converted, tokenizer.centroids)
    assert origin == given.origin
    with safe_open(tmp_path / "converted" / "kmeans.safetensors", "numpy") as file:
        assert file.metadata() == given.origin


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "none.safetensors": (lambda _: None, "no such file of centroids"),
    "cut.safetensors": (lambda path: path.write_bytes(b"abc"), "holds no tensor called centroids"),
    "other.safetensors": (lambda path: save_file({"x": np.ones((3, 3))}, path), "no tensor called centroids"),
    "ints.npy": (lambda path: np.save(path, np.ones((3, WIDTH), int)), "floating-point numbers of shape"),
    "cut.npy": (lambda path: path.write_bytes(b"\x93NUMPY"), "no array of numbers"),
    "objects.npy": (lambda path: np.save(path, np.array([{}, {}])), "no array of numbers"),
    "empty.bin": (lambda path: path.touch(), "no pickled k-means"),
    "many.npy": (lambda path: np.save(path, np.ones((65_001, 1), "f4")), "at most 65000"),
    "wide.npy": (lambda path: np.save(path, np.ones((3, 7))), "centroids 7 wide; layer 3 of .* is 24 wide"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_of_no_centroids_is_refused_in_one_line(name: str, base: Path, tmp_path: Path) -> None:
    make, said = BAD_FILES[name]
    make(tmp_path / name)
    with pytest.raises(SlamError, match=rf"{name}: .*{said}") as caught:
        fitted(base, kmeans=tmp_path / name)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, MismatchError if name.startswith("wide") else InputError)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled_weights(folder: Path) -> None:
    torch.save(AutoModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    no_weights(folder)


def lacking_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layers.1.final_layer_norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def config_of(**settings: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def preprocessor_of(**settings: object) -> Callable[[Path], None]:
    return lambda folder: (folder / "preprocessor_config.json").write_text(json.dumps(settings))


BAD_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (shutil.rmtree, "no such folder of a model"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no model that transformers can load"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "no model that transformers can load"),
    "no weights": (no_weights, "no safetensors weights .*; convert a"),
    "pickled weights": (pickled_weights, "no safetensors weights .*; convert a"),
    "lacking weights": (lacking_weights, r"lacks 1 weights, the first encoder\.layers\.1\.final_layer_norm"),
    "cut weights": (cut_weights, "no safetensors weights that"),
    "another family": (config_of(model_type="gpt2"), "is a gpt2 model; known are hubert, wav2vec2, wavlm"),
    "unknown family": (config_of(model_type="zzz"), "no model that transformers can load"),
    "other sizes": (config_of(hidden_size=32), "no safetensors weights that"),
    "nonsense sizes": (config_of(hidden_size="wide"), "no model that transformers can load"),
    "code": (config_of(model_type="zzz", auto_map={"AutoConfig": "x.Y"}), "no model that transformers"),
    "few layers": (config_of(num_hidden_layers=2), "layer = 3: .* has layers 1 to 2"),
    "silent": (lambda f: (f / "preprocessor_config.json").unlink(), "says whether recordings are normalised"),
    "no rate": (preprocessor_of(do_normalize=True, sampling_rate=0), "gives a sampling_rate of 0"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_model_that_cannot_be_used_is_refused_in_one_line(name: str, base: Path, tmp_path: Path) -> None:
    spoil, said = BAD_MODELS[name]
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    spoil(folder)
    with pytest.raises((InputError, ConfigError), match=said) as caught:
        fitted(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_too_little_speech_is_refused(base: Path) -> None:
    with pytest.raises(InputError, match="24 frames of speech are too few to fit 50 units"):
        Hubert.fit([sound(0.5, 1)], num_units=50, seed=0, layer=1, model=base)
    with pytest.raises(InputError, match=r"0 frames of speech"):
        Hubert.fit([], num_units=50, seed=0, layer=1, model=base)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_samples_that_are_not_finite_never_become_units(
    value: float, models: dict[str, Path], tokenizer: Hubert
) -> None:
    samples = sound(1.0, 1).samples.copy()
    samples[7000:7300] = value
    if np.isfinite(value):
        tokenizer = fitted(models["wavlm-large"])  # normalises: the variance of such samples overflows
    with np.errstate(all="ignore"), pytest.raises(InputError, match=r"1\.00 s of sound: .* not finite"):
        tokenizer.encode([Audio(samples, 16_000)])


def test_fitting_passes_over_them(base: Path, tokenizer: Hubert) -> None:
    bad = Audio(np.full(16_000, np.nan, np.float32), 16_000)
    recordings = [sound(2.0, number) for number in range(4)]
    found = Hubert.fit([bad, *recordings], num_units=16, seed=0, layer=3, model=base)
    assert found.fingerprint == tokenizer.fingerprint


def test_a_recording_too_short_for_a_frame_has_no_units(tokenizer: Hubert) -> None:
    for samples in (0, 1, 399):
        (units,) = tokenizer.encode([Audio(np.full(samples, 0.1, np.float32), 16_000)])
        assert len(units) == units.num_frames == 0
    assert tokenizer.encode([Audio(np.full(400, 0.1, np.float32), 16_000)])[0].num_frames == 1


@pytest.mark.usefixtures("one_thread")
def test_the_preset_is_slamkits_recipe(tmp_path: Path) -> None:
    folder, kmeans = save_as_published(tmp_path)
    _, origin = read_centroids(kmeans)
    preset = dataclasses.replace(MHUBERT_25HZ, kmeans_sha256=origin["sha256"])
    tokenizer = preset.fit([], num_units=100, seed=0, model=folder, kmeans=kmeans)
    assert (tokenizer.num_units, tokenizer.frame_rate, tokenizer.sample_rate) == (500, 25.0, 16_000)
    for audio in RECORDINGS[:2]:
        frames = hidden_states(folder, audio, (40, 40), normalize=False)[11].double()
        nearest = torch.cdist(frames, torch.from_numpy(tokenizer.centroids).double()).argmin(dim=1)
        assert_same_units(tokenizer.encode([audio])[0], deduplicate(nearest.numpy(), 25.0))
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint
    # what was converted once serves again, without the pickle
    kmeans.unlink()
    again = preset.fit(
        [], num_units=1, seed=9, model=folder, kmeans=tmp_path / "saved" / "kmeans.safetensors"
    )
    assert again.fingerprint == tokenizer.fingerprint


def test_a_preset_names_what_does_not_belong_to_it(tmp_path: Path, base: Path) -> None:
    folder, kmeans = save_as_published(tmp_path)
    fit = {"num_units": 500, "seed": 0}
    with pytest.raises(
        ConfigError, match=r"'mhubert-25hz' needs its centroids: get https://dl\.fbai.*km500\.bin"
    ):
        MHUBERT_25HZ.fit([], **fit, model=folder)
    with pytest.raises(
        MismatchError, match=r"km500\.bin: its SHA-256 is \w{8}…, that of https.* is 03cc04a9…"
    ):
        MHUBERT_25HZ.fit([], **fit, model=folder, kmeans=kmeans)
    slow = dataclasses.replace(HUBERT_BASE_L9, layer=3)
    with pytest.raises(MismatchError, match=r"500 units at 50 Hz; .* has 500, .* 25 Hz"):
        slow.fit([], **fit, model=folder, kmeans=kmeans)
    np.save(tmp_path / "few.npy", np.ones((100, WIDTH)))
    with pytest.raises(MismatchError, match=r"500 units at 50 Hz; .*few\.npy has 100"):
        slow.fit([], **fit, model=base, kmeans=tmp_path / "few.npy")
    with pytest.raises(ConfigError, match=r"layer = 9: .* has layers 1 to 4"):
        HUBERT_BASE_L9.fit([], **fit, model=base, kmeans=kmeans)


def test_presets_pin_what_they_take_from_the_hub() -> None:
    for preset in (MHUBERT_25HZ, HUBERT_BASE_L9):
        EncodeConfig(audio=Path("x"), tokenizer="hubert", layer=1, hub_model=preset.hub_model)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layer": 3}, "'logmel-kmeans' takes no layer; leave it out"),
        ({"model": Path(), "kmeans": Path()}, "'logmel-kmeans' takes no kmeans, model"),
        ({"tokenizer": "hubert", "model": Path()}, "'hubert' needs layer"),
        ({"tokenizer": "mhubert-25hz", "layer": 11}, "'mhubert-25hz' takes no layer"),
        ({"tokenizer": "hubert", "layer": 1, "model": Path(), "hub_model": "a/b@" + "0" * 40}, "not both"),
        (
            {"tokenizer": "hubert", "layer": 1, "hub_model": "a/b"},
            r"hub_model = 'a/b': write owner/name@commit",
        ),
        ({"tokenizer": "hubert", "layer": 1, "hub_model": "a/b@main"}, "write owner/name@commit"),
        ({"tokenizer": "hubert", "layer": 1, "kmeans": Path(), "num_units": 9}, "leave out num_units"),
        ({"tokenizer_from": Path(), "layer": 1}, "tokenizer_from brings its own layer"),
        ({"tokenizer": "huber"}, "did you mean 'hubert'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EncodeConfig(audio=Path("x"), **settings)


def test_a_strangers_tokenizer_is_asked_what_it_takes(toy_recordings: Path, tmp_path: Path) -> None:
    config = EncodeConfig(audio=toy_recordings, tokenizer="test_encode:Mortal", layer=1)
    with pytest.raises(ConfigError, match="'test_encode:Mortal' takes no layer"):
        encode(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_must_be_named(toy_recordings: Path, tmp_path: Path) -> None:
    config = EncodeConfig(audio=toy_recordings, tokenizer="hubert", layer=1)
    with pytest.raises(ConfigError, match="'hubert' needs a model: a folder"):
        encode(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_stage_fits_saves_and_passes_on(
    toy_recordings: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    chosen = {"tokenizer": "hubert", "model": Path(base.name), "layer": 3, "num_units": 12, "shard_size": 5}
    run = encode(EncodeConfig(audio=toy_recordings, **chosen, num_workers=2), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    units = read_units(tmp_path / "out")
    tokenizer = load_tokenizer(units.tokenizer_folder)
    assert (units.tokenizer, units.frame_rate, units.vocabulary.num_units) == ("hubert", 50.0, 12)
    assert units.tokenizer_fingerprint == tokenizer.fingerprint == run.results["tokenizer_fingerprint"]
    assert set(run.inputs) == {"audio", "model"}
    assert run.results["num_failures"] == 0
    for index, row in enumerate(read_json_lines(toy_recordings / "manifest.jsonl")):
        (expected,) = tokenizer.encode([read_audio(toy_recordings / row["audio"], 16_000)])
        assert_same_units(units[index], expected)

    alone = encode(
        EncodeConfig(audio=toy_recordings, **chosen | {"model": base}, num_workers=1), tmp_path / "alone"
    )
    assert alone.fingerprint == run.fingerprint
    assert files_of(tmp_path / "alone") == files_of(tmp_path / "out")

    more = write_recordings(tmp_path / "in", 2, first_seed=50)
    passed_on = encode(EncodeConfig(audio=more, tokenizer_from=tmp_path / "out"), tmp_path / "more")
    assert passed_on.results["tokenizer_fingerprint"] == tokenizer.fingerprint


def test_the_stage_takes_given_centroids_and_counts_odd_recordings(
    base: Path, centroids: Path, tmp_path: Path
) -> None:
    for number, seconds in enumerate((1.0, 0.02, 0.7)):
        write_audio(tmp_path / "in" / f"{number}.wav", sound(seconds, number))
    soundfile.write(tmp_path / "in" / "loud.wav", np.full(9000, 3e38), 16_000, subtype="FLOAT")
    settings = {"tokenizer": "hubert", "model": base, "layer": 2, "kmeans": centroids, "normalize": True}
    with np.errstate(all="ignore"):
        run = encode(EncodeConfig(audio=tmp_path / "in", **settings, max_failures=0.3), tmp_path / "out")
    rows = {row["id"]: row["num_units"] for row in read_json_lines(tmp_path / "out/shards/00000.jsonl")}
    assert rows.keys() == {"0.wav", "1.wav", "2.wav"}
    assert rows["1.wav"] == 0 < rows["0.wav"]
    assert run.results["vocabulary"] == 9
    assert set(run.inputs) == {"audio", "model", "kmeans"}
    (failure,) = read_json_lines(tmp_path / "out" / "failures.jsonl")
    assert failure["id"] == "loud.wav"
    assert "not finite" in failure["reason"]


def test_real_recordings(shared_data: Path, models: dict[str, Path]) -> None:
    paths = [
        *sorted(shared_data.glob("librispeech/*.flac"))[:4],
        *sorted(shared_data.glob("ljspeech/*.flac"))[:2],
    ]
    recordings = [read_audio(path, 16_000) for path in paths]
    tokenizer = Hubert.fit(recordings, num_units=50, seed=0, layer=4, model=models["mhubert-25hz"])
    together = tokenizer.encode(recordings)
    for audio, units in zip(recordings, together, strict=True):
        assert_same_units(units, tokenizer.encode([audio])[0])
        assert units.num_frames == (len(audio.samples) - 720) // 640 + 1
    assert len({unit for units in together for unit in units.ids.tolist()}) == 50


def test_importing_it_is_light() -> None:
    code = (
        "import sys, slam.tokenizers.hubert; print({'torch', 'transformers', 'sklearn'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def test_a_model_of_the_hub_is_taken_at_its_commit(base: Path, toy_recordings: Path, tmp_path: Path) -> None:
    commit = "0123456789" * 4
    shutil.copytree(base, tmp_path / "hub" / "models--an-owner--a.model" / "snapshots" / commit)
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "slam", "encode", "--tokenizer", "hubert", "--layer", "3"]
    command += ["--num-units", "12", "--audio", toy_recordings]

    def run(*more: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=False)

    done = run("--hub-model", f"an-owner/a.model@{commit}", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    about = read_json(tmp_path / "out" / "tokenizer" / "tokenizer.json")
    assert about["model"] == f"an-owner/a.model@{commit}"
    by_folder = EncodeConfig(audio=toy_recordings, tokenizer="hubert", layer=3, num_units=12, model=base)
    assert encode(by_folder, tmp_path / "same").results["tokenizer_fingerprint"] == about["fingerprint"]

    other = run("--hub-model", f"an-owner/a.model@{'0' * 40}", "--out", tmp_path / "other")
    assert other.returncode == 2
    (line,) = other.stderr.splitlines()
    assert line.startswith(f"error: an-owner/a.model@{'0' * 40}: no model that transformers can load")
    assert line.endswith("give it as a folder (model) where there is no network")
    assert not (tmp_path / "other").exists()
