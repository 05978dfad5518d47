import json
from collections import Counter
from itertools import pairwise
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from conftest import TINY_UNITS, sound
from reference import files_of
from slam.audio import Audio
from slam.encode import EncodeConfig, encode
from slam.errors import ConfigError, InputError
from slam.fit_units import FitUnitsConfig, fit_units
from slam.recordings import find_recordings, sample_recordings
from slam.run import RUN_FILE, STARTED_FILE, read_json
from slam.tokenizers import load_tokenizer
from slam.tokenizers.centroids import fit_centroids
from slam.tokenizers.logmel_kmeans import LogMelKMeans, log_mel
from slam.units import read_units
from tiny_speech_models import save_model


@pytest.fixture(scope="session")
def fitted(toy_recordings: Path) -> Path:
    out = toy_recordings.parent / "fitted"
    fit_units(FitUnitsConfig(audio=toy_recordings, num_units=TINY_UNITS, num_workers=2), out)
    return out


@pytest.fixture(scope="session")
def speech_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    return files_of(folder / "tokenizer")


def test_it_is_the_tokenizer_that_encode_fits_for_itself(fitted: Path, toy_units: Path) -> None:
    assert tokenizer_files(fitted) == tokenizer_files(toy_units)


def test_a_layers_tokenizer_too_is_the_one_that_encode_fits(
    speech_model: Path, toy_recordings: Path, tmp_path: Path
) -> None:
    settings = {
        "audio": toy_recordings,
        "tokenizer": "hubert",
        "model": speech_model,
        "layer": 2,
        "num_units": 8,
        "fit_seconds": 5.0,
        "seed": 3,
    }
    run = fit_units(FitUnitsConfig(**settings), tmp_path / "fitted")
    encode(EncodeConfig(**settings), tmp_path / "units")
    assert tokenizer_files(tmp_path / "fitted") == tokenizer_files(tmp_path / "units")
    assert run.results["frame_rate"] == 50
    assert run.results["seconds_of_speech"] < 6.5
    assert len(run.results["inertia_per_frame"]) > 1


def test_encode_takes_the_folder_and_makes_the_same_units(
    fitted: Path, toy_recordings: Path, toy_units: Path, tmp_path: Path
) -> None:
    encode(EncodeConfig(audio=toy_recordings, tokenizer_from=fitted), tmp_path / "units")
    ours, theirs = read_units(tmp_path / "units"), read_units(toy_units)
    assert ours.tokenizer_fingerprint == theirs.tokenizer_fingerprint
    np.testing.assert_array_equal(ours.ids, theirs.ids)


def test_the_run_tells_which_units_are_in_use(fitted: Path, toy_units: Path) -> None:
    results = read_json(fitted / RUN_FILE)["results"]
    units = read_units(toy_units)  # the sample is the whole folder, for it is short
    counts = Counter(units.ids.tolist())
    shares = [count / len(units.ids) for count in counts.values()]
    assert results["num_units"] == len(units.ids)
    assert results["num_frames"] == int(units.durations.sum())
    assert results["vocabulary_used"] == len(counts)
    assert results["vocabulary"] == TINY_UNITS
    assert results["unit_perplexity"] == pytest.approx(exp(-sum(p * log(p) for p in shares)), abs=0.006)
    assert results["num_recordings"] == 12
    assert results["num_failures"] == 0


def test_the_curve_falls_to_the_inertia_of_the_tokenizer(fitted: Path, tiny_tokenizer: LogMelKMeans) -> None:
    curve = read_json(fitted / "inertia.json")
    tokenizer = load_tokenizer(fitted / "tokenizer")
    assert isinstance(tokenizer, LogMelKMeans)
    told = [row["inertia_per_frame"] for row in curve]
    assert told == read_json(fitted / RUN_FILE)["results"]["inertia_per_frame"]
    assert [row["iterations"] for row in curve[:3]] == [1, 2, 4]
    assert len(curve) > 3
    assert told == sorted(told, reverse=True)
    assert told[0] > told[-1]
    heard: list[tuple[int, float]] = []
    sounds = [sound(2.0, seed) for seed in range(8)]
    again = LogMelKMeans.fit(sounds, num_units=TINY_UNITS, seed=0, watch=lambda *one: heard.append(one))
    assert again.fingerprint == tiny_tokenizer.fingerprint, "watching must change nothing"
    frames = (np.concatenate([log_mel(audio) for audio in sounds]) - again.mean) / again.scale
    squares = ((frames[:, None].astype(np.float64) - again.centroids) ** 2).sum(axis=2)
    assert heard[-1][1] == pytest.approx(squares.min(axis=1).mean(), rel=1e-4)
    order = np.random.default_rng(0).permutation(len(frames))
    for iterations, inertia in heard[:-1]:
        cut_short = KMeans(TINY_UNITS, n_init=1, max_iter=iterations, random_state=0).fit(frames[order])
        assert inertia == pytest.approx(cut_short.inertia_ / len(frames), rel=1e-5)


def test_a_layers_curve_is_the_inertia_of_its_frames_and_ends_where_it_falls_no_more() -> None:
    generator = np.random.default_rng(0)
    middles = generator.normal(size=(5, 6)) * 10
    frames = (middles[generator.integers(0, 5, 4000)] + generator.normal(size=(4000, 6))).astype(np.float32)
    heard: list[tuple[int, float]] = []
    watched = fit_centroids([frames], 6, num_units=9, seed=1, watch=lambda *one: heard.append(one))
    np.testing.assert_array_equal(watched, fit_centroids([frames], 6, num_units=9, seed=1))
    squares = ((frames[:, None].astype(np.float64) - watched) ** 2).sum(axis=2)
    assert min(heard)[1] > min(inertia for _, inertia in heard)
    assert min(inertia for _, inertia in heard) == pytest.approx(squares.min(axis=1).mean(), rel=1e-5)
    assert [epoch for epoch, _ in heard] == list(range(1, len(heard) + 1))
    assert 4 <= len(heard) < 100
    assert heard[-1][1] < 6.0, "five clusters of unit variance in six dimensions, and four units to spare"
    gains = [1 - later / earlier for (_, earlier), (_, later) in pairwise(heard)]
    assert max(gains[-3:]) < 1e-3


def test_the_centroids_of_the_best_epoch_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def harm(model: MiniBatchKMeans, _: np.ndarray) -> None:
        model.cluster_centers_ += 1

    monkeypatch.setattr(MiniBatchKMeans, "partial_fit", harm)
    frames = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    heard: list[float] = []
    kept = fit_centroids([frames], 3, num_units=15, seed=0, watch=lambda _, inertia: heard.append(inertia))
    assert heard == sorted(heard)
    assert len(heard) == 4, "one epoch, and three that gained nothing"
    squares = ((frames[:, None].astype(np.float64) - kept) ** 2).sum(axis=2)
    assert squares.min(axis=1).mean() == pytest.approx(heard[0], rel=1e-5)


def test_the_number_of_threads_changes_no_bit_of_a_fit() -> None:
    sounds = [sound(4.0, seed) for seed in range(10)]
    found = set()
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            found.add(LogMelKMeans.fit(sounds, num_units=40, seed=0).fingerprint)
    assert len(found) == 1


def test_only_so_many_seconds_are_drawn_and_the_seed_decides_which(
    toy_recordings: Path, tmp_path: Path
) -> None:
    prints = set()
    for seed in (0, 1):
        run = fit_units(
            FitUnitsConfig(audio=toy_recordings, num_units=4, fit_seconds=3.0, seed=seed),
            tmp_path / f"{seed}",
        )
        assert 3.0 <= run.results["seconds_of_speech"] < 3.0 + 2.0
        assert run.results["num_recordings"] < 12
        drawn = sample_recordings(find_recordings(toy_recordings), seconds=3.0, seed=seed)
        assert run.results["seconds_of_speech"] == pytest.approx(
            sum(audio.seconds for audio in drawn), abs=0.01
        )
        prints.add(run.results["tokenizer_fingerprint"])
    assert len(prints) == 2


def test_recordings_that_cannot_be_read_are_counted(toy_recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "bad.wav").write_bytes(b"no sound at all")
    (tmp_path / "speech" / "good.wav").write_bytes((toy_recordings / "audio" / "09.wav").read_bytes())
    run = fit_units(FitUnitsConfig(audio=tmp_path / "speech", num_units=3), tmp_path / "out")
    assert (run.results["num_recordings"], run.results["num_failures"]) == (1, 1)
    assert "bad.wav" in run.results["failures"][0]
    (tmp_path / "speech" / "good.wav").unlink()
    with pytest.raises(InputError, match="too few to fit 3 units"):
        fit_units(FitUnitsConfig(audio=tmp_path / "speech", num_units=3), tmp_path / "none")


def test_a_run_that_died_behind_its_fit_goes_on_with_it(
    fitted: Path, toy_recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FitUnitsConfig(audio=toy_recordings, num_units=TINY_UNITS)
    with monkeypatch.context() as patch:

        def cut(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(LogMelKMeans, "encode", cut)
        with pytest.raises(KeyboardInterrupt):
            fit_units(config, tmp_path / "out")
    assert (tmp_path / "out" / STARTED_FILE).is_file()
    monkeypatch.setattr(LogMelKMeans, "fit", cut)  # nothing is fitted twice
    run = fit_units(config, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(fitted)
    assert run.results == read_json(fitted / RUN_FILE)["results"]


class Stranger(LogMelKMeans):
    """A part of somebody's own, whose `fit` tells nothing of itself."""

    name = "test_fit_units:Stranger"

    @classmethod
    def fit(cls, audios: object, *, num_units: int, seed: int) -> "Stranger":
        made = LogMelKMeans.fit(audios, num_units=num_units, seed=seed)
        return cls(made.centroids, made.mean, made.scale, made.mean_durations)


def test_a_strangers_tokenizer_that_tells_no_inertia_is_fitted_too(
    toy_recordings: Path, tmp_path: Path
) -> None:
    config = FitUnitsConfig(audio=toy_recordings, tokenizer="test_fit_units:Stranger", num_units=5)
    run = fit_units(config, tmp_path / "out")
    assert run.results["inertia_per_frame"] == []
    assert run.results["vocabulary"] == 5
    assert (
        json.loads((tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text())["name"]
        == config.tokenizer
    )


def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    for settings, line in (
        ({"layer": 3}, "takes no layer"),
        ({"tokenizer": "hubert"}, "needs layer"),
        ({"num_workers": 0}, "num_workers must be more than 0"),
        ({"num_units": 1}, "between 2 and 65,000"),
    ):
        with pytest.raises(ConfigError, match=line):
            FitUnitsConfig(audio=tmp_path, **settings)


def test_silence_alone_cannot_be_fitted() -> None:
    with pytest.raises(InputError, match="too few"):
        LogMelKMeans.fit([Audio(np.zeros(160_000, np.float32), 16_000)], num_units=2, seed=0)
