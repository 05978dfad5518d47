import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import TINY_UNITS, sound, write_recordings
from slam.audio import Audio, read_audio, write_audio
from slam.encode import EncodeConfig, encode
from slam.errors import ConfigError, InputError, MismatchError
from slam.run import RUN_FILE, Unfinished, read_json_lines, write_json_lines
from slam.tokenizers.hubert import Hubert
from slam.tokenizers.logmel_kmeans import LogMelKMeans
from slam.tokenizers.speech_features import open_features
from slam.units import read_units
from slam.utterances import windows
from tiny_speech_models import save_model

RATE = 16_000


def speech(bursts: int, seed: int, pause: float = 0.6) -> Audio:
    """Bursts of 1 to 4 seconds with silence between them."""
    generator = np.random.default_rng(seed)
    parts = []
    for number in range(bursts):
        noise = generator.normal(0, 0.1, int(generator.uniform(1, 4) * RATE))
        parts += [
            noise + 0.2 * np.sin(np.arange(len(noise)) * (0.02 + number / 300)),
            np.zeros(int(pause * RATE)),
        ]
    return Audio(np.concatenate(parts).astype(np.float32), RATE)


def files(folder: Path) -> dict[str, bytes]:
    """Every file but those that tell of the work itself."""
    kept = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in (RUN_FILE, ".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short recordings, two long ones, one that is damaged and one without samples."""
    folder = tmp_path_factory.mktemp("mixed")
    for number in range(9):
        write_audio(folder / f"{number}.wav", sound(0.4 + (number * 5 % 7) / 3, number))
    write_audio(folder / "3-long.flac", speech(16, 1))
    write_audio(folder / "7-longer.wav", speech(24, 2))
    (folder / "5-damaged.wav").write_bytes(b"RIFF, or so it says")
    write_audio(folder / "6-empty.wav", Audio(np.zeros(0, np.float32), RATE))
    return folder


def config(audio: Path, units: Path, **more: object) -> EncodeConfig:
    return EncodeConfig(
        audio=audio, tokenizer_from=units, shard_size=4, max_failures=0.5, max_seconds=12.0, **more
    )


def test_every_input_stands_in_the_manifest_with_its_fate(
    mixed: Path, toy_units: Path, tmp_path: Path
) -> None:
    run = encode(config(mixed, toy_units), tmp_path / "out")
    rows = read_json_lines(tmp_path / "out" / "manifest.jsonl")
    assert [row["id"] for row in rows] == sorted(path.name for path in mixed.iterdir())
    fates = {row["id"]: row["fate"] for row in rows}
    failed = {"5-damaged.wav", "6-empty.wav"}
    assert {name for name, fate in fates.items() if fate == "failed"} == failed
    assert all(row["reason"] for row in rows if row["id"] in failed)
    units = read_units(tmp_path / "out")
    assert sum(row["num_units"] for row in rows) == len(units.ids)
    for row in rows:
        if row["id"] not in failed:
            assert row["seconds"] == pytest.approx(read_audio(mixed / row["id"]).seconds, abs=1e-3)
    assert run.results["num_recordings"] == len(rows) - 2
    assert run.results["num_utterances"] == len(units) > len(rows)


def test_a_long_recording_is_cut_in_its_silences_and_nothing_is_lost(
    mixed: Path, toy_units: Path, tmp_path: Path
) -> None:
    encode(config(mixed, toy_units), tmp_path / "out")
    tokenizer = LogMelKMeans.load(toy_units / "tokenizer")
    units = read_units(tmp_path / "out").by_name()
    rows = [
        row
        for path in sorted((tmp_path / "out" / "shards").glob("?????.jsonl"))
        for row in read_json_lines(path)
    ]
    for name in ("3-long.flac", "7-longer.wav"):
        audio = read_audio(mixed / name)
        pieces = [row for row in rows if row.get("source") == name]
        assert [row["id"] for row in pieces] == [f"{name}#{number:04d}" for number in range(len(pieces))]
        assert len(pieces) > audio.seconds / 12
        ends = [row["start"] + row["seconds"] for row in pieces]
        assert [row["start"] for row in pieces] == pytest.approx([0.0, *ends[:-1]])
        assert ends[-1] == pytest.approx(audio.seconds)
        (manifest,) = (
            row for row in read_json_lines(tmp_path / "out" / "manifest.jsonl") if row["id"] == name
        )
        assert manifest["cuts"] == pytest.approx(ends[:-1], abs=1e-4)
        for row in pieces:
            start, end = (round(RATE * second) for second in (row["start"], row["start"] + row["seconds"]))
            assert row["seconds"] <= 12.0
            assert end == len(audio.samples) or not audio.samples[end - 80 : end + 80].any()
            (expected,) = tokenizer.encode([Audio(audio.samples[start:end], RATE)])
            assert units[row["id"]].ids.tolist() == expected.ids.tolist()


def test_windows_of_log_mel_units_are_those_of_the_unbroken_recording(
    mixed: Path, toy_units: Path, tmp_path: Path
) -> None:
    encode(config(mixed, toy_units, long_audio="windows"), tmp_path / "out")
    tokenizer = LogMelKMeans.load(toy_units / "tokenizer")
    units = read_units(tmp_path / "out").by_name()
    for name in ("3-long.flac", "7-longer.wav", "2.wav"):
        (whole,) = tokenizer.encode([read_audio(mixed / name)])
        assert units[name].ids.tolist() == whole.ids.tolist()
        assert units[name].known_durations.tolist() == whole.known_durations.tolist()


@pytest.mark.parametrize("seconds", [11.97, 12.0, 12.01, 16.0, 20.0, 39.99, 47.3])
@pytest.mark.parametrize("block", [777, 160_000])
def test_windows_of_a_speech_model_agree_away_from_what_they_do_not_hear(
    seconds: float, block: int, tmp_path: Path
) -> None:
    """A model that looks at its neighbours only: all its frames are those of the unbroken recording."""
    features = open_features(str(save_model(tmp_path / "model", "hubert-large")), layer=1)
    for layer in features.model.encoder.layers:  # attention is what hears the whole recording
        layer.attention.out_proj.weight.zero_()
    frames = features(speech(4, 0))
    tokenizer = Hubert(features, frames[:: len(frames) // 30].numpy().copy())
    audio = speech(20, 3)
    audio = Audio(audio.samples[: int(seconds * RATE)], RATE)
    blocks = (audio.samples[i : i + block] for i in range(0, len(audio.samples), block))
    found = list(windows(blocks, tokenizer, 12.0))
    joined = np.concatenate([ids for _, ids, _ in found])
    assert joined.tolist() == tokenizer.encode([audio])[0].expand().tolist()
    assert sum(length for *_, length in found) == len(audio.samples)
    assert [start for start, *_ in found] == [number * 4 * RATE for number in range(len(found))]


def test_frames_that_fall_between_samples_cannot_be_windowed() -> None:
    class Odd:
        sample_rate = RATE
        frame_rate = 33.0

    with pytest.raises(MismatchError, match='long_audio = "cut"'):
        list(windows(iter([np.zeros(9, np.float32)]), Odd(), 20.0))


def test_a_folder_with_pairs_is_not_cut(toy_units: Path, tmp_path: Path) -> None:
    write_audio(tmp_path / "speech" / "long.wav", speech(12, 5))
    write_json_lines(tmp_path / "speech" / "manifest.jsonl", [{"id": "long", "audio": "long.wav"}])
    write_json_lines(tmp_path / "speech" / "pairs.jsonl", [])
    encode(config(tmp_path / "speech", toy_units), tmp_path / "out")
    assert read_units(tmp_path / "out").names == ("long",)


def test_a_long_recording_that_ends_too_soon_fails_whole(toy_units: Path, tmp_path: Path) -> None:
    write_recordings(tmp_path / "speech", 3)
    (tmp_path / "speech" / "manifest.jsonl").unlink()
    path = tmp_path / "speech" / "long.flac"
    write_audio(path, speech(16, 6))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    run = encode(config(tmp_path / "speech", toy_units), tmp_path / "out")
    assert run.results["num_failures"] == 1
    assert "long.flac" in run.results["failures"][0]
    assert len(read_units(tmp_path / "out")) == 3


@pytest.mark.parametrize("seconds", [0.5, 3.0, 500.0])
def test_batches_change_no_file(seconds: float, mixed: Path, toy_units: Path, tmp_path: Path) -> None:
    encode(config(mixed, toy_units, batch_seconds=0.0), tmp_path / "singly")
    encode(config(mixed, toy_units, batch_seconds=seconds, num_workers=3), tmp_path / "together")
    assert files(tmp_path / "singly") == files(tmp_path / "together")


def test_a_recording_that_spoils_a_batch_is_the_only_one_to_fail(tmp_path: Path) -> None:
    """Samples so large that the model's frames are not finite."""
    for number in range(5):
        write_audio(tmp_path / "speech" / f"{number}.wav", sound(1.0 + number / 9, number))
    import soundfile

    loud = sound(1.2, 9).samples.astype(np.float64) * 1e38
    soundfile.write(tmp_path / "speech" / "2-loud.wav", loud, RATE, subtype="DOUBLE")
    model = save_model(tmp_path / "model", "hubert-base", normalize=True)
    run = encode(
        EncodeConfig(
            audio=tmp_path / "speech", tokenizer="hubert", model=model, layer=2, num_units=8,
            batch_seconds=100.0, max_failures=0.5,
        ),
        tmp_path / "out",
    )  # fmt: skip
    failures = read_json_lines(tmp_path / "out" / "failures.jsonl")
    assert [row["id"] for row in failures] == ["2-loud.wav"]
    assert run.results["num_recordings"] == 5


@pytest.mark.parametrize("at_once", [True, False])
def test_parts_of_the_work_join_to_the_single_run(
    *,
    at_once: bool,
    mixed: Path,
    tmp_path: Path,
) -> None:
    shared = [
        "--audio",
        str(mixed),
        "--num-units",
        str(TINY_UNITS),
        "--shard-size",
        "3",
        "--max-failures",
        "0.5",
    ]
    single = tmp_path / "single"

    def part(out: Path, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "slam", "encode", *shared, "--out", str(out), *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ended(process: subprocess.Popen[str]) -> str:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out + err

    out = tmp_path / "out"
    ended(part(single))
    if at_once:
        both = [part(out, "--shard", f"{number}/2") for number in (1, 2)]
        words = [ended(process) for process in both]  # both, before one is looked at
        assert any("num_utterances" in word for word in words)
    else:
        word = ended(part(out, "--shard", "2/2"))
        assert "part 2/2 is done; 3 of 5 shards are other parts' to write" in word
        assert not (out / RUN_FILE).exists()
        finished = {p: p.stat().st_mtime_ns for p in (out / "shards").glob("*.safetensors")}
        assert len(finished) == 2
        ended(part(out, "--shard", "1/2"))
        assert finished == {path: path.stat().st_mtime_ns for path in finished}
    assert (out / RUN_FILE).exists()
    assert files(out) == files(single)


def test_a_part_that_died_is_done_by_the_whole_command(mixed: Path, toy_units: Path, tmp_path: Path) -> None:
    with pytest.raises(Unfinished, match="part 1/3 is done"):
        encode(config(mixed, toy_units, shard="1/3"), tmp_path / "out")
    encode(config(mixed, toy_units), tmp_path / "out")
    encode(config(mixed, toy_units), tmp_path / "single")
    assert files(tmp_path / "out") == files(tmp_path / "single")


def test_too_many_failures_end_the_stage_before_the_rest_is_encoded(toy_units: Path, tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02d}.wav").write_bytes(b"nothing")
    with pytest.raises(InputError, match="2 of 12 recordings failed"):
        encode(
            EncodeConfig(audio=tmp_path, tokenizer_from=toy_units, shard_size=2, max_failures=0.1),
            tmp_path / "out",
        )
    assert len(read_json_lines(tmp_path / "out" / "failures.jsonl")) == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"shard": "0/2"}, "shard = '0/2': write I/N"),
        ({"shard": "3/2"}, "shard = '3/2': write I/N"),
        ({"shard": "half"}, "shard = 'half': write I/N"),
        ({"max_seconds": 3.0}, "max_seconds = 3: must be at least 10"),
        ({"batch_seconds": -1.0}, "batch_seconds = -1: must not be below 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        EncodeConfig(audio=Path("speech"), **settings)


def test_bf16_is_for_speech_models_only(toy_recordings: Path, toy_units: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'logmel-kmeans' computes in fp32 only"):
        encode(config(toy_recordings, toy_units, precision="bf16"), tmp_path / "out")
