import numpy as np
import pytest

import toy_language
from slam.audio import Audio, write_audio
from slam.benchmark_units import Encoders, open_benchmark, tokenizers_in
from slam.errors import InputError, MismatchError
from slam.evaluate import EvaluateConfig, evaluate
from slam.pairs import PairRow, write_pair_rows
from slam.run import read_json, write_json_lines
from slam.tokenizers.logmel_kmeans import LogMelKMeans

RATES = (8_000, 16_000, 44_100)


@pytest.fixture
def sounds(tmp_path):
    """Nine pairs of noises at several rates, as a folder of recordings."""
    return write_sounds(tmp_path / "sounds", 9)


def write_sounds(folder, count, seed=0):
    generator = np.random.default_rng(seed)
    rows, manifest = [], []
    for number in range(count):
        for side in "cr":
            rate = RATES[number % 3]
            tilt = np.cumsum(generator.normal(0, 0.02, int(rate * generator.uniform(0.4, 1.2))))
            samples = generator.normal(0, 0.1, len(tilt)) + np.sin(tilt)
            write_audio(folder / f"{number}{side}.wav", Audio((samples / 4).astype(np.float32), rate))
            manifest.append({"id": f"{number}{side}", "audio": f"{number}{side}.wav"})
        rows.append(PairRow(str(number), "noises", "all", f"{number}c", f"{number}r", 0.0, 0.0))
    write_json_lines(folder / "manifest.jsonl", manifest)
    write_pair_rows(folder, rows)
    return folder


@pytest.fixture
def tokenizer(tmp_path):
    spoken = toy_language.tokenizer()
    spoken.save(tmp_path / "units" / "tokenizer")
    return spoken


def encoders(tmp_path):
    return Encoders(tokenizers_in([tmp_path / "units"]), None, tmp_path / "cache", 2)


def units_of(tmp_path, sounds, tokenizer):
    found = encoders(tmp_path).units(open_benchmark(sounds), tokenizer.name, tokenizer.fingerprint)
    return {name: units.expand().tolist() for name, units in found.by_name().items()}


def counted(monkeypatch):
    """How many recordings are encoded from here on."""
    seen = []
    encode = LogMelKMeans.encode

    def counting(self, batch):
        seen.extend(batch)
        return encode(self, batch)

    monkeypatch.setattr(LogMelKMeans, "encode", counting)
    return seen


def test_recordings_have_the_units_that_the_tokenizer_gives_each_alone(tmp_path, sounds, tokenizer):
    from slam.audio import read_audio

    found = units_of(tmp_path, sounds, tokenizer)
    assert len(found) == 18
    for name, frames in found.items():
        (alone,) = tokenizer.encode([read_audio(sounds / f"{name}.wav", tokenizer.sample_rate)])
        assert alone.expand().tolist() == frames


def test_a_second_time_nothing_is_encoded(tmp_path, sounds, tokenizer, monkeypatch):
    first = units_of(tmp_path, sounds, tokenizer)
    seen = counted(monkeypatch)
    assert units_of(tmp_path, sounds, tokenizer) == first
    assert not seen


def test_the_same_sound_elsewhere_is_known_by_its_content(tmp_path, sounds, tokenizer, monkeypatch):
    first = units_of(tmp_path, sounds, tokenizer)
    moved = sounds.rename(tmp_path / "moved")
    seen = counted(monkeypatch)
    assert units_of(tmp_path, moved, tokenizer) == first
    assert not seen


def test_a_changed_recording_is_encoded_anew(tmp_path, sounds, tokenizer):
    first = units_of(tmp_path, sounds, tokenizer)
    tone = np.sin(np.arange(16_000) / 3).astype(np.float32) / 2
    write_audio(sounds / "4c.wav", Audio(tone, 16_000))
    second = units_of(tmp_path, sounds, tokenizer)
    assert {name for name in first if first[name] != second[name]} == {"4c"}


def test_a_noted_digest_is_believed_only_for_the_file_it_was_noted_of(tmp_path, sounds, tokenizer):
    path = sounds / "4c.wav"
    stat = path.stat()
    noted = {"sha256": "0" * 64, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}
    manifest = sounds / "manifest.jsonl"
    lines = manifest.read_text().replace(
        '"audio": "4c.wav"', f'"audio": "4c.wav", {str(noted)[1:-1]}'.replace("'", '"')
    )
    manifest.write_text(lines)
    units_of(tmp_path, sounds, tokenizer)
    (kept,) = (tmp_path / "cache" / tokenizer.fingerprint).iterdir()
    assert ["4c", "0" * 64] in read_json(kept / "sound.json")
    path.write_bytes(path.read_bytes()[:-2] + b"\x00\x10")  # the same length, another time
    units_of(tmp_path, sounds, tokenizer)
    assert len(list((tmp_path / "cache" / tokenizer.fingerprint).iterdir())) == 2


def test_an_interrupted_encoding_goes_on(tmp_path, sounds, tokenizer, monkeypatch):
    monkeypatch.setattr("slam.benchmark_units._SHARD_SIZE", 6)
    encode, calls = LogMelKMeans.encode, []

    def dying(self, batch):
        calls.append(1)
        if len(calls) > 8:
            raise KeyboardInterrupt
        return encode(self, batch)

    monkeypatch.setattr(LogMelKMeans, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        units_of(tmp_path, sounds, tokenizer)
    monkeypatch.setattr(LogMelKMeans, "encode", encode)
    seen = counted(monkeypatch)
    found = units_of(tmp_path, sounds, tokenizer)
    assert len(seen) == 12
    monkeypatch.undo()
    assert found == units_of(tmp_path / "fresh", sounds, save_again(tmp_path / "fresh", tokenizer))


def save_again(folder, tokenizer):
    tokenizer.save(folder / "units" / "tokenizer")
    return tokenizer


def test_a_damaged_recording_is_named_and_may_be_mended(tmp_path, sounds, tokenizer):
    good = (sounds / "3r.wav").read_bytes()
    (sounds / "3r.wav").write_bytes(good[:60])
    for _ in range(2):
        with pytest.raises(InputError, match=r"1 of 18 recordings cannot be encoded.*3r\.wav") as caught:
            units_of(tmp_path, sounds, tokenizer)
        assert "\n" not in str(caught.value)
    (sounds / "3r.wav").write_bytes(good)
    assert len(units_of(tmp_path, sounds, tokenizer)) == 18


def test_a_missing_recording_is_named(tmp_path, sounds, tokenizer):
    (sounds / "3r.wav").unlink()
    with pytest.raises(InputError, match=r"3r\.wav: cannot be read"):
        units_of(tmp_path, sounds, tokenizer)


def test_recordings_without_the_models_tokenizer_are_refused(tmp_path, sounds, tokenizer):
    nothing = Encoders({}, None, tmp_path / "cache", 1)
    with pytest.raises(InputError, match="give tokenizer_from"):
        nothing.units(open_benchmark(sounds), tokenizer.name, tokenizer.fingerprint)


def test_an_encoded_benchmark_of_another_tokenizer_is_refused(tmp_path):
    toy_language.write_pairs(tmp_path / "pairs", toy_language.counting_pairs(3), fingerprint="f" * 16)
    nothing = Encoders({}, None, tmp_path / "cache", 1)
    with pytest.raises(MismatchError, match="encode with the model's tokenizer"):
        nothing.units(open_benchmark(tmp_path / "pairs"), "logmel-kmeans", "0" * 16)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (None, "no such folder of benchmark pairs"),
        ((), r"holds no benchmark pairs \(pairs.jsonl is missing\)"),
        (("pairs.jsonl",), r"holds no benchmark pairs \(units.json or manifest.jsonl is missing\)"),
        (("pairs.jsonl", "manifest.jsonl"), "holds no pairs"),
    ],
)
def test_what_is_no_benchmark_is_refused_with_what_was_looked_for(tmp_path, files, reason):
    folder = tmp_path / "set"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_text("")
    with pytest.raises(InputError, match=reason):
        open_benchmark(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no speech tokenizer"):
        tokenizers_in([tmp_path])


@pytest.mark.usefixtures("tokenizer")
def test_scores_of_recordings_are_those_of_their_units(tmp_path, sounds):
    toy_language.write_lm(tmp_path / "lm")
    common = {"models": {"lm": tmp_path / "lm"}, "cache": tmp_path / "cache"}
    evaluate(
        EvaluateConfig(benchmarks=(sounds,), tokenizer_from=(tmp_path / "units",), **common), tmp_path / "one"
    )
    from slam.encode import EncodeConfig, encode

    encode(EncodeConfig(audio=sounds, tokenizer_from=tmp_path / "units"), tmp_path / "encoded")
    evaluate(EvaluateConfig(benchmarks=(tmp_path / "encoded",), **common), tmp_path / "other")
    for name in ("results.json", "items.jsonl", "floors.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "other" / name).read_text()
