import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conformance import assert_same_units
from conftest import TINY_UNITS, sound, write_recordings
from reference import files_of
from slam.audio import read_audio, write_audio
from slam.encode import EncodeConfig, encode
from slam.errors import ConfigError, InputError, MismatchError
from slam.pairs import PairRow, read_pairs, write_pair_rows
from slam.run import RUN_FILE, STARTED_FILE, Run, read_json, read_json_lines, write_json_lines
from slam.tokenizers import load_tokenizer
from slam.tokenizers.logmel_kmeans import LogMelKMeans
from slam.units import UNITS_FILE, read_units, shard_path

SETTINGS = {"num_units": TINY_UNITS, "shard_size": 5, "num_workers": 2}


def unfinish(folder: Path) -> None:
    """Put a finished folder back to where its run was killed before its last words."""
    run = read_json(folder / RUN_FILE)
    started = {"stage": run["stage"], "fingerprint": run["fingerprint"], "seconds": 1.0, "peak": 0}
    (folder / STARTED_FILE).write_text(json.dumps(started))
    for name in (RUN_FILE, UNITS_FILE, "failures.jsonl"):
        (folder / name).unlink()


def test_a_manifest_is_encoded_in_its_order_as_the_tokenizer_says(
    toy_recordings: Path, toy_units: Path
) -> None:
    units = read_units(toy_units)
    tokenizer = load_tokenizer(units.tokenizer_folder)
    rows = read_json_lines(toy_recordings / "manifest.jsonl")
    assert units.names == tuple(row["id"] for row in rows)
    assert units.vocabulary.num_units == tokenizer.num_units == TINY_UNITS
    assert units.tokenizer_fingerprint == tokenizer.fingerprint
    for index, row in enumerate(rows):
        (expected,) = tokenizer.encode([read_audio(toy_recordings / row["audio"], 16_000)])
        assert_same_units(units[index], expected)
        assert units[index].num_frames == math.ceil(row["seconds"] * 25)


def test_the_run_tells_what_came_out(toy_recordings: Path, toy_units: Path) -> None:
    results = read_json(toy_units / RUN_FILE)["results"]
    units = read_units(toy_units)
    seconds = sum(row["seconds"] for row in read_json_lines(toy_recordings / "manifest.jsonl"))
    share = np.bincount(units.ids, minlength=TINY_UNITS) / len(units.ids)
    entropy = -sum(p * math.log(p) for p in share if p)
    assert results["num_recordings"] == 12
    assert results["num_failures"] == 0
    assert results["num_units"] == len(units.ids)
    assert results["seconds_of_speech"] == pytest.approx(seconds, abs=0.01)
    assert results["units_per_second"] == pytest.approx(len(units.ids) / seconds, abs=0.01)
    assert results["unit_perplexity"] == pytest.approx(math.exp(entropy), abs=0.01)
    assert results["vocabulary_used"] == len(set(units.ids.tolist()))


def test_real_recordings_of_any_rate_are_encoded(shared_data: Path, tmp_path: Path) -> None:
    chosen = [
        *sorted(shared_data.glob("librispeech/3005-*.flac"))[:3],
        *sorted(shared_data.glob("ljspeech/*.flac"))[:2],
    ]
    rates = set()
    for path in chosen:
        samples, rate = soundfile.read(path)
        rates.add(rate)
        name = tmp_path / "audio" / path.parent.name / path.stem
        name.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(name.with_suffix(".ogg" if rate == 22_050 else ".flac"), samples, rate)
    assert rates == {16_000, 22_050}
    run = encode(
        EncodeConfig(audio=tmp_path / "audio", num_units=32, num_workers=2, max_failures=0), tmp_path / "out"
    )
    units = read_units(tmp_path / "out")
    assert units.names == tuple(
        [f"librispeech/{path.stem}.flac" for path in chosen[:3]]
        + [f"ljspeech/{path.stem}.ogg" for path in chosen[3:]]
    )
    for index, path in enumerate(chosen):
        info = soundfile.info(path)
        assert units[index].num_frames == pytest.approx(info.frames / info.samplerate * 25, abs=1.01)
    assert run.results["vocabulary_used"] == 32
    assert 8 < run.results["units_per_second"] < 25
    assert run.results["unit_perplexity"] > 15


def test_the_number_of_workers_changes_no_file(toy_recordings: Path, toy_units: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        config = EncodeConfig(
            audio=toy_recordings, **SETTINGS | {"num_workers": workers, "max_failures": 0.0}
        )
        run = encode(config, tmp_path / str(workers))
        assert files_of(tmp_path / str(workers)) == files_of(toy_units)
        assert run.fingerprint == read_json(toy_units / RUN_FILE)["fingerprint"]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_run_that_lost_a_shard_is_finished_to_the_same_bytes(
    lost: int, toy_recordings: Path, toy_units: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(toy_units, out)
    unfinish(out)
    shard_path(out, lost).unlink()
    kept = shard_path(out, (lost + 1) % 3)
    time_before = kept.stat().st_mtime_ns
    encode(EncodeConfig(audio=toy_recordings, **SETTINGS | {"max_failures": 0.0}), out)
    assert files_of(out) == files_of(toy_units)
    assert kept.stat().st_mtime_ns == time_before


class PowerCutError(Exception):
    pass


class Mortal(LogMelKMeans):
    """Encodes as its parent does, but only so many recordings."""

    name = "test_encode:Mortal"
    left = 0

    def encode(self, batch: object) -> object:
        if not Mortal.left:
            raise PowerCutError
        Mortal.left -= 1
        return super().encode(batch)


def test_a_run_that_died_goes_on_with_the_tokenizer_that_it_had_fitted(
    toy_recordings: Path, toy_units: Path, tmp_path: Path
) -> None:
    config = EncodeConfig(
        audio=toy_recordings,
        tokenizer="test_encode:Mortal",
        num_units=TINY_UNITS,
        shard_size=5,
        num_workers=1,
    )
    for left in (0, 7, 6):
        Mortal.left = left
        with pytest.raises(PowerCutError):
            encode(config, tmp_path / "out")
        assert not (tmp_path / "out" / RUN_FILE).exists()
    Mortal.left = 100
    encode(config, tmp_path / "out")
    one, other = read_units(tmp_path / "out"), read_units(toy_units)
    assert one.names == other.names
    assert one.ids.tolist() == other.ids.tolist()
    assert one.durations.tolist() == other.durations.tolist()


def spoilt(folder: Path) -> list[str]:
    """Spoil three of twelve recordings, each in its own way; their names."""
    write_recordings(folder)
    (folder / "audio" / "02.wav").write_bytes(b"nonsense")
    (folder / "audio" / "06.wav").unlink()
    soundfile.write(folder / "audio" / "11.wav", np.full(99, np.nan), 16_000, subtype="FLOAT")
    return ["02.wav", "06.wav", "11.wav"]


def test_unreadable_recordings_are_named_and_counted_and_the_others_encoded(
    toy_units: Path, tmp_path: Path
) -> None:
    names = spoilt(tmp_path / "in")
    config = EncodeConfig(audio=tmp_path / "in", tokenizer_from=toy_units, max_failures=0.25, **SETTINGS)
    run = encode(config, tmp_path / "out")
    assert run.results["num_recordings"] == 9
    assert run.results["num_failures"] == 3
    assert all(name in reason for name, reason in zip(names, run.results["failures"], strict=True))
    failures = read_json_lines(tmp_path / "out" / "failures.jsonl")
    assert [row["id"] for row in failures] == ["toy-02", "toy-06", "toy-11"]
    units, whole = read_units(tmp_path / "out"), read_units(toy_units)
    assert units.names == tuple(name for name in whole.names if name not in {"toy-02", "toy-06", "toy-11"})
    for name in units.names:
        assert_same_units(units.by_name()[name], whole.by_name()[name])


def test_fitting_passes_over_unreadable_recordings(tmp_path: Path) -> None:
    spoilt(tmp_path / "in")
    run = encode(EncodeConfig(audio=tmp_path / "in", max_failures=0.3, **SETTINGS), tmp_path / "out")
    assert run.results["num_failures"] == 3
    assert run.results["vocabulary_used"] == TINY_UNITS


def test_too_many_unreadable_recordings_end_the_stage(toy_units: Path, tmp_path: Path) -> None:
    spoilt(tmp_path / "in")
    config = EncodeConfig(audio=tmp_path / "in", tokenizer_from=toy_units, max_failures=0.2, **SETTINGS)
    with pytest.raises(InputError, match=r"3 of 12 recordings failed, the first: .*02\.wav"):
        encode(config, tmp_path / "out")
    assert not (tmp_path / "out" / RUN_FILE).exists()
    with pytest.raises(InputError, match="holds no units"):
        read_units(tmp_path / "out")


def test_another_folder_is_encoded_with_the_same_tokenizer(toy_units: Path, tmp_path: Path) -> None:
    write_recordings(tmp_path / "in", 3, first_seed=40)
    run = encode(EncodeConfig(audio=tmp_path / "in", tokenizer_from=toy_units), tmp_path / "out")
    one, other = read_units(toy_units), read_units(tmp_path / "out")
    assert one.tokenizer_fingerprint == other.tokenizer_fingerprint
    assert one.vocabulary == other.vocabulary
    assert set(run.inputs) == {"audio", "tokenizer_from"}
    assert len(other) == 3


def fitted_with(folder: Path, **settings: object) -> Run:
    return encode(EncodeConfig(**SETTINGS | settings), folder)


def test_the_seed_and_the_sample_decide_the_tokenizer(
    toy_recordings: Path, toy_units: Path, tmp_path: Path
) -> None:
    found = {read_units(toy_units).tokenizer_fingerprint}
    for number, settings in enumerate(({"seed": 1}, {"fit_seconds": 4.0}, {"num_units": 10})):
        run = fitted_with(tmp_path / str(number), audio=toy_recordings, **settings)
        found.add(run.results["tokenizer_fingerprint"])
    assert len(found) == 4


def test_the_fitting_sample_is_drawn_from_all_recordings(toy_recordings: Path, tmp_path: Path) -> None:
    recordings = [read_audio(path) for path in sorted(toy_recordings.glob("audio/*.wav"))]
    first = LogMelKMeans.fit(recordings[:5], num_units=8, seed=0)
    seconds = sum(audio.seconds for audio in recordings[:5])
    config = EncodeConfig(audio=toy_recordings, num_units=8, fit_seconds=seconds, seed=0)
    run = encode(config, tmp_path / "out")
    assert run.results["tokenizer_fingerprint"] != first.fingerprint
    # asked for all there is, it fits on all, and the order of the recordings is drawn too
    run = encode(EncodeConfig(audio=toy_recordings, num_units=8, seed=0), tmp_path / "all")
    whole = load_tokenizer(tmp_path / "all" / "tokenizer")
    assert run.results["tokenizer_fingerprint"] == whole.fingerprint
    ordered = LogMelKMeans.fit(recordings, num_units=8, seed=0)
    np.testing.assert_allclose(whole.mean, ordered.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole.scale, ordered.scale, rtol=1e-4, atol=1e-4)


def test_a_tokenizer_that_was_changed_on_disk_is_refused(
    toy_recordings: Path, toy_units: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(toy_units, changed)
    path = changed / "tokenizer" / "kmeans.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(MismatchError, match="the folder was changed"):
        encode(EncodeConfig(audio=toy_recordings, tokenizer_from=changed), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_changed_between_two_sittings_is_refused(
    toy_recordings: Path, toy_units: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(toy_units, out)
    unfinish(out)
    shard_path(out, 2).unlink()
    about = read_json(out / "tokenizer" / "tokenizer.json")
    (out / "tokenizer" / "tokenizer.json").write_text(json.dumps(about | {"fingerprint": "0" * 16}))
    with pytest.raises(MismatchError, match="fingerprint"):
        encode(EncodeConfig(audio=toy_recordings, **SETTINGS | {"max_failures": 0.0}), out)


def test_a_folder_without_a_tokenizer_is_refused(toy_recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no speech tokenizer"):
        encode(EncodeConfig(audio=toy_recordings, tokenizer_from=toy_recordings), tmp_path / "out")


def test_pairs_go_along_with_their_units(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "in")
    row = PairRow("p", "storycloze", "place", "toy-10", "toy-11", 0.4, 0.4)
    write_pair_rows(folder, [row])
    fitted_with(tmp_path / "out", audio=folder)
    units = read_units(tmp_path / "out")
    (pair,) = read_pairs(units)
    whole = units.by_name()["toy-10"].expand().tolist()
    assert pair.prompt.expand().tolist() == whole[:10]
    assert pair.chosen.expand().tolist() == whole[-pair.chosen.num_frames :]


def test_a_plain_folder_is_searched_through(tmp_path: Path) -> None:
    for number, name in enumerate(("b/deep/2.flac", "a.wav", "b/1.WAV")):
        write_audio(tmp_path / "in" / name, sound(1.0, number, rate=16_000 if number else 44_100))
    (tmp_path / "in" / "readme.txt").write_text("not a sound")
    run = fitted_with(tmp_path / "out", audio=tmp_path / "in")
    assert read_units(tmp_path / "out").names == ("a.wav", "b/1.WAV", "b/deep/2.flac")
    assert run.results["num_failures"] == 0


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "holds no recordings"),
        ([{"id": "a", "text": "hello"}], 'row 1 has no "audio"'),
        ([{"id": "a", "audio": "a.wav"}, {"id": "a", "audio": "b.wav"}], "row 2: the id 'a'"),
        ([{"audio": "a.wav"}], "row 1: the id None"),
    ],
)
def test_a_manifest_that_lists_no_recordings_is_refused(
    rows: list[dict[str, str]], reason: str, tmp_path: Path
) -> None:
    write_json_lines(tmp_path / "in" / "manifest.jsonl", rows)
    with pytest.raises(InputError, match=reason):
        fitted_with(tmp_path / "out", audio=tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such"):
        fitted_with(tmp_path / "out", audio=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no recordings"):
        fitted_with(tmp_path / "out", audio=tmp_path / "empty")
    (tmp_path / "file.wav").touch()
    with pytest.raises(InputError, match=r"file\.wav: no such folder"):
        fitted_with(tmp_path / "out", audio=tmp_path / "file.wav")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_units": 1}, "num_units = 1"),
        ({"num_units": 65_001}, "num_units = 65001"),
        ({"shard_size": 0}, "shard_size"),
        ({"num_workers": 0}, "num_workers"),
        ({"fit_seconds": 0.0}, "fit_seconds"),
        ({"max_failures": 5.0}, "max_failures = 5.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        EncodeConfig(audio=Path("x"), **settings)
