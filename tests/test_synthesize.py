import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import files_of, pcm
from slam.audio import Audio, read_audio
from slam.encode import EncodeConfig, encode
from slam.errors import ConfigError, InputError, MissingExtraError
from slam.normalization import normalizer
from slam.pairs import PAIRS_FILE, read_pair_rows, read_pairs
from slam.recordings import find_recordings
from slam.run import RUN_FILE, STARTED_FILE, Unfinished, read_json, read_json_lines, write_json_lines
from slam.shares import Share
from slam.stories import write_pairs, write_texts
from slam.synthesize import Shards, SynthesizeConfig, synthesize
from slam.synthesizers import Speech, Utterance
from slam.synthesizers.espeak import Espeak
from slam.units import read_units

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


def test_the_time_of_each_word_is_kept(spoken: Path) -> None:
    for row in manifest(spoken)[::6]:
        (speech,) = Espeak().synthesize([Utterance(row["text"], row["voice"], row["rate"])], 16_000)
        assert [position for position, _ in row["words"]] == [start for start, _ in speech.word_seconds]
        for (position, second), (_, exact) in zip(row["words"], speech.word_seconds, strict=True):
            assert second == pytest.approx(exact, abs=0.000_51)
            assert position == 0 or row["text"][position - 1] in " -"


def test_flac_holds_the_samples_of_wav_and_opus_nearly(tmp_path: Path) -> None:
    settings = {"texts": {"sentences": 3}, "num_workers": 1}
    folders = {suffix: tmp_path / suffix for suffix in ("wav", "flac", "opus")}
    for suffix, out in folders.items():
        synthesize(SynthesizeConfig(**settings, audio_format=suffix), out)
        for row, before in zip(manifest(out), manifest(folders["wav"]), strict=True):
            assert row == before | {"audio": str(Path(before["audio"]).with_suffix(f".{suffix}"))}
            now, then = read_audio(out / row["audio"]), read_audio(folders["wav"] / before["audio"])
            assert now.sample_rate == then.sample_rate == 16_000
            assert len(now.samples) == len(then.samples)
            assert suffix != "flac" or now.samples.tobytes() == then.samples.tobytes()
            assert np.corrcoef(now.samples, then.samples)[0, 1] > 0.9
    for out in folders.values():
        assert len(find_recordings(out)) == len(find_recordings(out / "audio")) == 3  # by their suffix, too
    sizes = [sum(file.stat().st_size for file in (folder / "audio").rglob("*.*"))
             for folder in folders.values()]  # fmt: skip
    assert sizes[0] > 1.5 * sizes[1] > 3 * sizes[2]


class Beeper:
    """Beeps for as many tenths of a second as a word has letters; cannot say "mute"."""

    name, version, spoken = "beeper", "1", 0

    def check_voice(self, voice: str) -> None:
        if voice == "nobody":
            raise ConfigError("Beeper has no voice 'nobody'")

    def synthesize(self, utterances: Sequence[Utterance], sample_rate: int) -> list[Speech]:
        return [self._speech(utterance, sample_rate) for utterance in utterances]

    def _speech(self, utterance: Utterance, sample_rate: int) -> Speech:
        if "mute" in utterance.text:
            raise InputError(f"Beeper could not speak {utterance.text!r}")
        Beeper.spoken += 1
        starts = [match.start() for match in re.finditer(r"\S+", utterance.text)]
        letters = [len(word) for word in utterance.text.split()]
        times = np.cumsum([0, *letters]) / 10
        samples = np.sin(np.arange(round(times[-1] * sample_rate)) / (3 + len(utterance.voice))) / 4
        if utterance.voice == "timeless":
            starts = []
        return Speech(
            Audio(samples.astype(np.float32), sample_rate), tuple(zip(starts, times.tolist(), strict=False))
        )


BEEPER = {"synthesizer": "test_synthesize:Beeper", "num_workers": 1}


def write_text_pairs(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    whole = [{"id": f"p{n}", "benchmark": "mine", "kind": "k", "reason": "why", "story": None} | row
             for n, row in enumerate(rows)]  # fmt: skip
    write_json_lines(folder / "text-pairs.jsonl", whole)
    return folder


def test_built_pairs_are_two_utterances_of_one_voice_that_part_where_the_side_begins(tmp_path: Path) -> None:
    folder = write_text_pairs(
        tmp_path / "built",
        [
            {"prompt": "She went\n out", "chosen": "to swim.", "rejected": "of\u00a0glass"},
            {"prompt": "", "chosen": "one", "rejected": "six", "voice": "bm_george"},
            *({"prompt": f"No{n}", "chosen": "one", "rejected": "six"} for n in range(9)),
        ],
    )
    run = synthesize(
        SynthesizeConfig(pairs_from=folder, voices=("ann", "bob"), rates=(1, 2), **BEEPER), tmp_path / "out"
    )
    rows = {row["id"]: row for row in manifest(tmp_path / "out")}
    pairs = read_pair_rows(tmp_path / "out")
    assert run.results["num_pairs"] == len(pairs) == 11
    assert [pair.id for pair in pairs] == [f"p{n}" for n in range(11)]
    first, second = pairs[:2]
    assert (first.benchmark, first.kind, first.reason) == ("mine", "k", "why")
    assert rows[first.chosen]["text"] == "She went out to swim."
    assert rows[first.rejected]["text"] == "She went out of glass"
    assert (first.chosen_start, first.rejected_start) == (1.0, 1.0)  # ten letters go before
    assert (second.chosen_start, second.rejected_start) == (0.0, 0.0)
    for pair in pairs:
        one, other = rows[pair.chosen], rows[pair.rejected]
        assert (one["voice"], one["rate"]) == (other["voice"], other["rate"])
    assert rows[second.chosen]["voice"] == "bm_george"
    assert {rows[pair.chosen]["voice"] for pair in pairs} == {"ann", "bob", "bm_george"}


def test_a_pair_with_a_side_that_cannot_be_spoken_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = write_text_pairs(
        tmp_path / "built",
        [
            {"prompt": "a", "chosen": "one", "rejected": "mute"},
            {"prompt": "a", "chosen": "one", "rejected": "six"},
        ],
    )
    run = synthesize(SynthesizeConfig(pairs_from=folder, **BEEPER), tmp_path / "out")
    assert [pair.id for pair in read_pair_rows(tmp_path / "out")] == ["p1"]
    assert run.results["num_pairs_unspoken"] == run.results["num_failures"] == 1
    (failure,) = read_json_lines(tmp_path / "out" / "failures.jsonl")
    assert failure == {"id": "p0-rejected", "reason": "Beeper could not speak 'a mute'"}
    with pytest.raises(InputError, match="tells no word's time"):
        synthesize(SynthesizeConfig(pairs_from=folder, voices=("timeless",), **BEEPER), tmp_path / "timeless")


def test_a_text_of_the_grammar_that_cannot_be_spoken_stops_the_stage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^beeper tells no word's time"):
        synthesize(
            SynthesizeConfig(pairs={"storycloze": 1}, voices=("timeless",), **BEEPER), tmp_path / "out"
        )


def test_better_sides_are_as_often_longer_as_shorter(tmp_path: Path) -> None:
    sides = [("longest", "one")] * 9 + [("one", "longest")] * 4 + [("same", "both")] * 3
    # longer by much does not make up for shorter by little
    sides += [("one and a whole lot more of it", "one")] * 3 + [("one", "one and some more of those")] * 1
    rows = [{"prompt": "a", "chosen": one, "rejected": other} for one, other in sides]
    # of another set, and balanced apart from the first
    rows += [{"prompt": "a", "chosen": "one", "rejected": "long", "benchmark": "other"}] * 2
    rows += [{"prompt": "a", "chosen": "long", "rejected": "one", "benchmark": "other"}]
    folder = write_text_pairs(tmp_path / "built", rows)
    kept = {}
    for seed in (0, 1):
        out = tmp_path / f"out-{seed}"
        run = synthesize(SynthesizeConfig(pairs_from=folder, seed=seed, **BEEPER), out)
        seconds = {row["id"]: row["seconds"] for row in manifest(out)}
        pairs = read_pair_rows(out)
        assert run.results["num_pairs"] == len(pairs) == 4 + 4 + 3 + 1 + 1 + 2
        assert run.results["num_pairs_dropped_for_length"] == 5 + 2 + 1
        for benchmark in ("mine", "other"):
            more = [seconds[pair.chosen] - pair.chosen_start - seconds[pair.rejected] + pair.rejected_start
                    for pair in pairs if pair.benchmark == benchmark]  # fmt: skip
            assert sum(m > 0.05 for m in more) == sum(m < -0.05 for m in more)
        kept[seed] = [pair.id for pair in pairs]
    assert kept[0] != kept[1]
    synthesize(SynthesizeConfig(pairs_from=folder, balance_lengths=False, **BEEPER), tmp_path / "all")
    assert len(read_pair_rows(tmp_path / "all")) == 23


def test_every_voice_asks_each_item_in_its_own_pair(tmp_path: Path) -> None:
    rows = [
        {"chosen": "one", "rejected": "six", "cluster": "one", "groups": {"level": "easy"}},
        {"chosen": "two", "rejected": "ten", "voice": "cat"},
    ]
    folder = write_text_pairs(tmp_path / "built", [{"prompt": ""} | row for row in rows])
    settings = {"pairs_from": folder, "voices": ("ann", "bob+x"), "rates": (1, 2), **BEEPER}
    synthesize(SynthesizeConfig(**settings, every_voice=True), tmp_path / "out")
    pairs = read_pair_rows(tmp_path / "out")
    told = {row["id"]: row for row in manifest(tmp_path / "out")}
    assert [(pair.id, pair.item) for pair in pairs] == [("p0-ann", "p0"), ("p0-bob+x", "p0"), ("p1", None)]
    assert pairs[0].groups == {"level": "easy", "voice": "ann"}
    assert pairs[1].groups == {"level": "easy", "voice": "bob+x"}
    assert (pairs[0].cluster, pairs[2].cluster, pairs[2].groups) == ("one", None, {})
    for pair, voice in zip(pairs, ("ann", "bob+x", "cat"), strict=True):
        assert {told[pair.chosen]["voice"], told[pair.rejected]["voice"]} == {voice}
    assert len({told[pair.chosen]["rate"] for pair in pairs[:2]}) == 1  # one way of asking


def test_an_item_is_left_out_in_every_voice_or_in_none(tmp_path: Path) -> None:
    rows = [{"chosen": "longest", "rejected": f"no{n}"} for n in range(7)]
    rows += [{"chosen": f"no{n}", "rejected": "longest"} for n in range(3)]
    folder = write_text_pairs(tmp_path / "built", [{"prompt": ""} | row for row in rows])
    settings = {"pairs_from": folder, "voices": ("ann", "bob", "cy"), **BEEPER}
    run = synthesize(SynthesizeConfig(**settings, every_voice=True), tmp_path / "out")
    voices: dict[str | None, set[str]] = {}
    for pair in read_pair_rows(tmp_path / "out"):
        voices.setdefault(pair.item, set()).add(pair.groups["voice"])
    assert len(voices) == 6
    assert set(map(frozenset, voices.values())) == {frozenset({"ann", "bob", "cy"})}
    assert run.results["num_pairs_dropped_for_length"] == 12


def test_pairs_of_a_cluster_are_spoken_by_one_voice(tmp_path: Path) -> None:
    rows = [{"chosen": f"a{n}", "rejected": f"b{n}", "cluster": f"c{n // 3}"} for n in range(30)]
    folder = write_text_pairs(tmp_path / "built", [{"prompt": ""} | row for row in rows])
    synthesize(SynthesizeConfig(pairs_from=folder, voices=("ann", "bob", "cy"), **BEEPER), tmp_path / "out")
    told = {row["id"]: row["voice"] for row in manifest(tmp_path / "out")}
    voices: dict[str | None, set[str]] = {}
    for pair in read_pair_rows(tmp_path / "out"):
        voices.setdefault(pair.cluster, set()).add(told[pair.chosen])
    assert all(len(some) == 1 for some in voices.values())
    assert len(set.union(*voices.values())) == 3


def test_pairs_of_the_grammar_are_never_left_out_for_their_length(spoken: Path) -> None:
    assert "num_pairs_dropped_for_length" not in read_json(spoken / RUN_FILE)["results"]


def test_text_is_repaired_before_it_is_spoken_and_the_original_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("The caf\u00c3\u00a9 is &amp; was open.\nPlain.\n")
    settings = {"text": tmp_path / "mine.txt", **BEEPER}
    synthesize(SynthesizeConfig(**settings), tmp_path / "out")
    one, other = manifest(tmp_path / "out")
    assert one["text"] == "The caf\u00e9 is & was open."
    assert one["original"] == "The caf\u00c3\u00a9 is &amp; was open."
    assert other["text"] == "Plain."
    assert "original" not in other
    synthesize(SynthesizeConfig(**settings, normalization="none"), tmp_path / "as-it-is")
    assert manifest(tmp_path / "as-it-is")[0]["text"] == one["original"]


def spoken_texts(folder: Path) -> list[str]:
    return [row["text"] for row in manifest(folder)]


def units_of(folder: Path) -> list[tuple[str, bytes, bytes]]:
    units = read_units(folder)
    return [(name, units[n].ids.tobytes(), units[n].known_durations.tobytes())
            for n, name in enumerate(units.names)]  # fmt: skip


@pytest.mark.parametrize("kind", ["texts", "pairs"])
def test_units_only_gives_the_units_that_encoding_the_sound_would(
    kind: str, toy_units: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text(f"Hello there.\n...\n{'A long tale is told. ' * 45}\n")
    texts = {"text": tmp_path / "mine.txt", "texts": {"words": 5}}
    settings = {"texts": texts, "pairs": texts | {"pairs": {"swuggy": 2, "storycloze": 2}}}[kind]
    settings |= {"shard_size": 4, "num_workers": 1, "voices": ("en-us", "en-029")}
    synthesize(SynthesizeConfig(**settings), tmp_path / "sound")
    encode(
        EncodeConfig(audio=tmp_path / "sound", tokenizer_from=toy_units, num_workers=1), tmp_path / "encoded"
    )
    run = synthesize(SynthesizeConfig(**settings, units_only=toy_units), tmp_path / "units")
    assert units_of(tmp_path / "units") == units_of(tmp_path / "encoded")
    long = [name for name in read_units(tmp_path / "units").names if name.startswith("line-0000003")]
    assert len(long) == (1 if kind == "pairs" else 2)  # pairs are cut by times, so nothing else is
    assert spoken_texts(tmp_path / "units") == spoken_texts(tmp_path / "sound")
    told, encoded = manifest(tmp_path / "units"), manifest(tmp_path / "encoded")
    for key in ("id", "fate", "num_units", "cuts"):
        assert [row.get(key) for row in told] == [row.get(key) for row in encoded]
    assert run.results["num_failures"] == 1
    assert read_units(tmp_path / "units").tokenizer_fingerprint == read_units(toy_units).tokenizer_fingerprint
    assert not list((tmp_path / "units").rglob("*.wav"))
    if kind == "pairs":
        rows = [(tmp_path / name / PAIRS_FILE).read_bytes() for name in ("sound", "units")]
        assert rows[0] == rows[1]
        assert len(read_pairs(read_units(tmp_path / "units"))) == 4
    else:
        assert not (tmp_path / "units" / PAIRS_FILE).exists()


def test_units_only_goes_on_after_it_died_and_keeps_no_sound(toy_units: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"synthesizer": "test_synthesize:Mortal", "units_only": toy_units}
    config = SynthesizeConfig(**settings)
    for left in (6, 1, 7):
        Mortal.left = left
        with pytest.raises(PowerCutError):
            synthesize(config, tmp_path / "out")
        assert len(list((tmp_path / "out").rglob("*.wav"))) < 4  # of the shard that was at work, no other
    Mortal.left = 100
    synthesize(config, tmp_path / "out")
    # six of the first shard's and the second's, one more, seven: 4 + 4 were kept
    assert Mortal.left == 100 - (17 - 8)
    Mortal.left = 100
    synthesize(config, tmp_path / "unbroken")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "unbroken")
    assert not list((tmp_path / "out").rglob("*.wav"))


def test_shares_of_the_work_make_the_same_folder(spoken: Path, toy_units: Path, tmp_path: Path) -> None:
    for shard in ("2/3", "3/3"):
        with pytest.raises(Unfinished, match=f"part {shard} is done"):
            synthesize(SynthesizeConfig(**SETTINGS, shard=shard), tmp_path / "out")
    synthesize(SynthesizeConfig(**SETTINGS, shard="1/3"), tmp_path / "out")
    found = {name: content for name, content in files_of(tmp_path / "out").items() if name != ".lock"}
    assert found == files_of(spoken)
    for shard in ("1/2", "1/2"):  # the second finds its part done, and others' missing as before
        with pytest.raises(Unfinished, match="2 of 5 shards are other parts'"):
            synthesize(SynthesizeConfig(**SETTINGS, units_only=toy_units, shard=shard), tmp_path / "units")
    synthesize(SynthesizeConfig(**SETTINGS, units_only=toy_units, shard="2/2"), tmp_path / "units")
    synthesize(SynthesizeConfig(**SETTINGS, units_only=toy_units), tmp_path / "whole")
    assert units_of(tmp_path / "units") == units_of(tmp_path / "whole")


@given(shards=st.integers(1, 9), last=st.integers(1, 3), step=st.integers(1, 4), data=st.data())
def test_every_missing_shard_is_found_once_and_the_number_of_shards_known(
    shards: int, last: int, step: int, data: st.DataObject
) -> None:
    lines = [f"line {n}" for n in range(3 * (shards - 1) + last)]
    done = data.draw(st.sets(st.integers(0, shards - 1)))
    made = {}
    for first in range(step):

        class Lines:
            @staticmethod
            def lines(skip: int) -> Iterator[str]:
                return iter(lines[skip:])

        work = Shards(Lines, 3, Share(first, step), lambda index: index in done)
        made |= dict(work.missing(lambda _: None))
        assert work.number == shards
    assert made == {n: lines[3 * n : 3 * n + 3] for n in range(shards) if n not in done}


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
        ({"pairs_from": Path("x"), "text_only": True}, "pairs are spoken"),
        ({"texts": {"stories": 1}, "shard": "3/2"}, "write I/N"),
        ({"texts": {"stories": 1}, "shard": "1/2", "text_only": True}, "text_only speaks nothing"),
        ({"texts": {"stories": 1}, "units_only": Path("x"), "text_only": True}, "text_only speaks nothing"),
        ({"texts": {"stories": 1}, "units_only": Path("x"), "audio_format": "flac"}, "keeps no sound"),
        ({"texts": {"stories": 1}, "tokenizer": "mine:Mine"}, "give both or neither"),
        ({"texts": {"stories": 1}, "audio_format": "opus", "sample_rate": 22_050}, "opus has 8000, 12000"),
        ({"dataset": "a/b", "dataset_folder": Path("x")}, "not both"),
        ({"dataset": "TinyStories"}, "write owner/name"),
        ({"dataset": "a/b", "limit": 0}, "limit = 0"),
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
        ({"texts": {"words": 1}, "synthesizer_folder": Path()}, "takes no folder"),
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
        ("no-text.jsonl", b'{"text": "a"}\n{"words": "b"}\n', 'no-text.jsonl:2: has no "text"'),
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
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'slam\[espeak\]'"):
        synthesize(SynthesizeConfig(texts={"words": 1}, num_workers=1), tmp_path / "out")


def test_a_missing_normaliser_names_the_extra_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    normalizer.cache_clear()
    monkeypatch.setitem(sys.modules, "nemo_text_processing", None)
    (tmp_path / "mine.txt").write_text("One.\n")
    with pytest.raises(MissingExtraError, match=r"pip install 'slam\[normalize\]'"):
        synthesize(
            SynthesizeConfig(text=tmp_path / "mine.txt", normalization="spoken", **BEEPER), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
