import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from reference import files_of, pcm
from slam.audio import read_audio
from slam.errors import ConfigError, InputError, MissingExtraError
from slam.pairs import PAIRS_FILE, read_pair_rows
from slam.recordings import find_recordings
from slam.run import RUN_FILE, STARTED_FILE, read_json, read_json_lines
from slam.stories import write_pairs, write_texts
from slam.synthesize import SynthesizeConfig, synthesize
from slam.synthesizers import Speech, Utterance
from slam.synthesizers.espeak import Espeak

pytest.importorskip("espeakng_loader", reason="slam[espeak] is not installed")
VOICES = ("en-us", "en-029", "en-us+f3")
SETTINGS = {
    "texts": {"stories": 3, "words": 4},
    "pairs": {"preferences": 3, "swuggy": 2},
    "voices": VOICES,
    "rates": (160, 200),
    "shard_size": 4,
    "num_workers": 1,
}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("spoken") / "out"
    synthesize(SynthesizeConfig(**SETTINGS), out)
    return out


def manifest(folder: Path) -> list[dict[str, object]]:
    return read_json_lines(folder / "manifest.jsonl")


def unfinish(folder: Path) -> None:
    """Put a finished folder back to where its run was killed before its last words."""
    run = read_json(folder / RUN_FILE)
    started = {"stage": run["stage"], "fingerprint": run["fingerprint"], "seconds": 1.0, "peak": 0}
    (folder / STARTED_FILE).write_text(json.dumps(started))
    for name in (RUN_FILE, "manifest.jsonl", PAIRS_FILE):
        (folder / name).unlink()


def test_every_text_asked_for_is_spoken_and_listed(spoken: Path) -> None:
    rows = manifest(spoken)
    told = {text.text for source in ("stories", "words")
            for text in write_texts(source, SETTINGS["texts"][source], split="train", seed=0)}  # fmt: skip
    for source in ("preferences", "swuggy"):
        for pair in write_pairs(source, SETTINGS["pairs"][source], split="train", seed=0):
            told |= {f"{pair.prompt} {side}".strip() for side in (pair.chosen, pair.rejected)}
    assert Counter(row["source"] for row in rows) == {"stories": 3, "words": 4, "preferences": 6, "swuggy": 4}
    assert {row["text"] for row in rows} == told
    assert len({row["id"] for row in rows}) == len(rows) == 17
    for row in rows:
        audio = read_audio(spoken / row["audio"])
        assert audio.sample_rate == 16_000
        assert audio.seconds == row["seconds"] > 0.2
        assert np.abs(audio.samples).max() > 0.05
    assert {row["rate"] for row in rows} == {160, 200}
    assert len({row["voice"] for row in rows}) > 1
    results = read_json(spoken / RUN_FILE)["results"]
    assert results["num_utterances"] == 17
    assert results["num_pairs"] == 5
    assert results["num_failures"] == 0
    assert results["seconds_of_speech"] == pytest.approx(sum(row["seconds"] for row in rows), abs=0.01)


def test_the_sound_files_are_what_the_synthesizer_says(spoken: Path) -> None:
    for row in manifest(spoken)[::5]:
        utterance = Utterance(row["text"], row["voice"], row["rate"])
        (speech,) = Espeak().synthesize([utterance], 16_000)
        written = read_audio(spoken / row["audio"]).samples
        np.testing.assert_allclose(written, np.clip(speech.audio.samples, -1, 1), atol=1.01 / 32_768)


def test_both_sides_of_a_pair_have_one_voice_and_rate(spoken: Path) -> None:
    rows = {row["id"]: row for row in manifest(spoken)}
    for pair in read_pair_rows(spoken):
        chosen, rejected = rows[pair.chosen], rows[pair.rejected]
        assert (chosen["voice"], chosen["rate"]) == (rejected["voice"], rejected["rate"])
        assert chosen["text"] != rejected["text"]


def test_pairs_know_their_seam_and_prompts_are_the_same_samples_on_both_sides(tmp_path: Path) -> None:
    out = tmp_path / "out"
    synthesize(SynthesizeConfig(pairs={"storycloze": 6, "topic-storycloze": 6}, num_workers=1), out)
    rows = {row["id"]: row for row in manifest(out)}
    written = {pair.id: pair for source in ("storycloze", "topic-storycloze")
               for pair in write_pairs(source, 6, split="train", seed=0)}  # fmt: skip
    for pair in read_pair_rows(out):
        texts = written[pair.id]
        assert rows[pair.chosen]["text"] == f"{texts.prompt} {texts.chosen}"
        assert (pair.reason, pair.kind, pair.story) == (texts.reason, texts.kind, texts.story)
        row = rows[pair.chosen]
        (alone,) = Espeak().synthesize([Utterance(texts.prompt, row["voice"], row["rate"])], 16_000)
        assert pair.chosen_start == pair.rejected_start == pytest.approx(alone.audio.seconds, abs=1e-3)
        assert pair.chosen_start > 3
        one, other = (pcm(out / rows[name]["audio"]) for name in (pair.chosen, pair.rejected))
        seam = round(pair.chosen_start * 16_000)
        edge = 480  # the resampler's filter hears this far over the seam
        # the resampler works in blocks whose last bits depend on the whole length: one 16-bit step at most
        np.testing.assert_allclose(one[: seam - edge], other[: seam - edge], atol=1)
        spoken_alone = np.clip(np.rint(alone.audio.samples * 32_768), -32_768, 32_767)[: seam - edge]
        np.testing.assert_allclose(one[: seam - edge], spoken_alone, atol=1)
        least = min(len(one), len(other))
        assert (one[seam:least] != other[seam:least]).any()


def test_sides_without_a_prompt_begin_at_zero(spoken: Path) -> None:
    words = [pair for pair in read_pair_rows(spoken) if pair.benchmark == "swuggy"]
    assert len(words) == 2
    assert all(pair.chosen_start == pair.rejected_start == 0 for pair in words)


def test_the_number_of_workers_changes_no_file(spoken: Path, tmp_path: Path) -> None:
    synthesize(SynthesizeConfig(**SETTINGS | {"num_workers": 2}), tmp_path / "two")
    one, two = files_of(spoken), files_of(tmp_path / "two")
    assert one == two


def test_a_run_that_lost_a_shard_is_finished_to_the_same_bytes(spoken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    synthesize(SynthesizeConfig(**SETTINGS), out)
    unfinish(out)
    (out / "shards" / "00001.jsonl").unlink()
    for sound in (out / "audio" / "00001").iterdir():
        sound.unlink()
    kept = next((out / "audio" / "00002").iterdir())
    time_before = kept.stat().st_mtime_ns
    run = synthesize(SynthesizeConfig(**SETTINGS), out)
    assert files_of(out) == files_of(spoken)
    assert kept.stat().st_mtime_ns == time_before  # what was spoken is not spoken again
    assert run.seconds > 1.0


class PowerCutError(Exception):
    pass


class Mortal(Espeak):
    """Speaks as eSpeak does, but only so many utterances."""

    left = 0

    def synthesize(self, utterances: Sequence[Utterance], sample_rate: int) -> list[Speech]:
        if not Mortal.left:
            raise PowerCutError
        Mortal.left -= 1
        return super().synthesize(utterances, sample_rate)


def test_a_run_that_died_at_any_utterance_goes_on_to_the_same_sound(spoken: Path, tmp_path: Path) -> None:
    config = SynthesizeConfig(**SETTINGS | {"synthesizer": "test_synthesize:Mortal"})
    for left in (1, 5, 8):
        Mortal.left = left
        with pytest.raises(PowerCutError):
            synthesize(config, tmp_path / "out")
        assert not (tmp_path / "out" / RUN_FILE).exists()
        assert not list((tmp_path / "out").rglob("*.partial"))
    Mortal.left = 100
    synthesize(config, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(spoken)


def test_every_voice_says_the_same_at_any_time_of_day() -> None:
    # breath, whisper and Klatt voices draw noise; eSpeak seeds it with the second in which it started
    utterances = [
        Utterance("The rabbit ran.", f"en-us+{variant}", 180) for variant in ("f3", "whisper", "Reed")
    ]
    first = Espeak().synthesize(utterances, 16_000)
    time.sleep(1.05)
    for before, after in zip(first, Espeak().synthesize(utterances, 16_000), strict=True):
        assert before.audio.samples.tobytes() == after.audio.samples.tobytes()


def test_sentences_begin_on_the_frames_of_a_tokenizer_of_25_hz() -> None:
    text = "The rabbit ran home. Anna saw it! Did it stop? No"
    starts = {text.index(first) for first in ("The", "Anna", "Did", "No")}
    (speech,) = Espeak().synthesize([Utterance(text, "en-us", 170)], 16_000)
    for position, seconds in speech.word_seconds:
        if position in starts:
            assert seconds * 25 == pytest.approx(round(seconds * 25), abs=1e-6)
    assert starts < {position for position, _ in speech.word_seconds}


def test_lines_of_a_text_file_are_spoken_in_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeffFirst  line.\r\n\r\n   \nThe café is open.\nLast".encode())
    synthesize(SynthesizeConfig(text=path, num_workers=1), tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert [row["text"] for row in rows] == ["First line.", "The café is open.", "Last"]
    assert {row["source"] for row in rows} == {"text"}


def test_texts_of_a_jsonl_file_are_spoken_in_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "One\\ntwo.", "id": 7}\n\n{"text": "Three."}\n')
    synthesize(SynthesizeConfig(text=path, num_workers=1), tmp_path / "out")
    assert [row["text"] for row in manifest(tmp_path / "out")] == ["One two.", "Three."]


def test_a_line_that_cannot_be_spoken_is_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Hello.\n...\nGoodbye.\n")
    run = synthesize(SynthesizeConfig(text=path, num_workers=1), tmp_path / "out")
    assert [row["text"] for row in manifest(tmp_path / "out")] == ["Hello.", "Goodbye."]
    assert run.results["num_utterances"] == 2
    assert run.results["num_failures"] == 1
    assert "'...'" in run.results["failures"][0]
    assert [row["id"] for row in read_json_lines(tmp_path / "out" / "failures.jsonl")] == ["line-0000002"]
    path.write_text("...\n")
    with pytest.raises(InputError, match="nothing could be spoken"):
        synthesize(SynthesizeConfig(text=path, num_workers=1), tmp_path / "silent")


def test_text_only_writes_the_texts_without_sound(tmp_path: Path) -> None:
    run = synthesize(SynthesizeConfig(texts={"stories": 5}, text_only=True), tmp_path / "out")
    texts = write_texts("stories", 5, split="train", seed=0)
    assert [row["text"] for row in manifest(tmp_path / "out")] == [text.text for text in texts]
    assert run.results["num_words"] == sum(len(text.text.split()) for text in texts)
    assert not (tmp_path / "out" / "audio").exists()
    with pytest.raises(InputError, match=r"text without sound\?"):
        find_recordings(tmp_path / "out")


def test_kinds_restrict_the_contradictions_and_the_seed_decides(tmp_path: Path) -> None:
    settings = {"pairs": {"preferences": 4}, "kinds": ("place", "animal"), "num_workers": 1}
    synthesize(SynthesizeConfig(**settings), tmp_path / "zero")
    synthesize(SynthesizeConfig(**settings, seed=1), tmp_path / "one")
    pairs = read_pair_rows(tmp_path / "zero")
    assert Counter(pair.kind for pair in pairs) == {"place": 2, "animal": 2}
    texts = [{row["text"] for row in manifest(tmp_path / name)} for name in ("zero", "one")]
    assert texts[0] != texts[1]


def test_the_sample_rate_is_as_asked(tmp_path: Path) -> None:
    synthesize(SynthesizeConfig(texts={"words": 1}, sample_rate=24_000, num_workers=1), tmp_path / "out")
    (row,) = manifest(tmp_path / "out")
    assert read_audio(tmp_path / "out" / row["audio"]).sample_rate == 24_000


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "nothing to say"),
        ({"texts": {"stories": 1}, "voices": ()}, "voices and rates"),
        ({"pairs": {"swuggy": 1}, "text_only": True}, "pairs are spoken"),
        ({"texts": {"stories": 0}}, "texts.stories = 0"),
        ({"pairs": {"swuggy": -3}}, "pairs.swuggy = -3"),
        ({"texts": {"stories": 1}, "sample_rate": 10}, "sample_rate = 10"),
        ({"texts": {"stories": 1}, "num_workers": 0}, "num_workers = 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SynthesizeConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"texts": {"poems": 1}}, "unknown text source 'poems'; known: stories"),
        ({"pairs": {"preferences": 1}, "kinds": ("smell",)}, "unknown kind 'smell'"),
        ({"texts": {"words": 1}, "voices": ("en-us", "en-nowhere")}, "no voice 'en-nowhere'"),
        ({"texts": {"words": 1}, "synthesizer": "espek"}, "did you mean 'espeak'"),
        ({"pairs": {"swuggy": 999_999}}, "only .* distinct pairs"),
    ],
)
def test_what_does_not_exist_is_named_and_leaves_nothing(
    settings: dict[str, object], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        synthesize(SynthesizeConfig(**settings, num_workers=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b"\n  \n", "holds no text"),
        ("latin.txt", "Caf\u00e9".encode("latin-1"), "not UTF-8"),
        ("empty.jsonl", b"\n", "holds no text"),
        ("no-text.jsonl", b'{"text": "a"}\n{"words": "b"}\n', 'row 2 has no "text"'),
        ("broken.jsonl", b'{"text": "a"}\n{"text"\n', "broken.jsonl:2: not JSON"),
    ],
)
def test_a_bad_text_file_is_named(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        synthesize(SynthesizeConfig(text=tmp_path / name, num_workers=1), tmp_path / "out")
    assert name in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'slam\[espeak\]'"):
        synthesize(SynthesizeConfig(texts={"words": 1}, num_workers=1), tmp_path / "out")
