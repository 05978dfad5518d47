"""What every part must pass, built in or a stranger's: call these with the part from a test of your own.

def test_my_tokenizer_conforms(tmp_path):
    check_tokenizer(MyTokenizer.load(...), tmp_path, [speech, more_speech])
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slam.audio import Audio
from slam.errors import ConfigError
from slam.recognizers import Recognizer
from slam.synthesizers import Synthesizer, Utterance
from slam.tokenizers import SpeechTokenizer
from slam.units import Units
from slam.vocoders import Vocoder

_FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def assert_same_units(one: Units, other: Units) -> None:
    """Unit for unit and frame for frame."""
    assert one.ids.tolist() == other.ids.tolist()
    assert one.known_durations.tolist() == other.known_durations.tolist()
    assert one.frame_rate == other.frame_rate


def check_tokenizer(tokenizer: SpeechTokenizer, folder: Path, recordings: Sequence[Audio]) -> None:
    """Everything below that is asked of a tokenizer; `recordings` last a second or more each."""
    assert isinstance(tokenizer, SpeechTokenizer)
    check_units(tokenizer, recordings)
    check_saved_tokenizer(tokenizer, folder, recordings)
    check_batches(tokenizer, recordings)


def check_units(tokenizer: SpeechTokenizer, recordings: Sequence[Audio]) -> None:
    """Units are in the vocabulary, deduplicated, and their durations give one label for each frame."""
    for audio, units in zip(recordings, tokenizer.encode(recordings), strict=True):
        assert len(units) > 1
        assert units.frame_rate == tokenizer.frame_rate
        assert units.ids.dtype == units.known_durations.dtype == np.uint16
        assert int(units.ids.max()) < tokenizer.num_units
        assert int(units.known_durations.min()) >= 1
        assert (units.ids[1:] != units.ids[:-1]).all()
        frames = units.expand()
        assert len(frames) == units.num_frames == pytest.approx(audio.seconds * tokenizer.frame_rate, abs=2)
        expected = [unit for unit, times in zip(units.ids, units.known_durations, strict=True)
                    for _ in range(times)]  # fmt: skip
        assert frames.tolist() == expected


def check_saved_tokenizer(tokenizer: SpeechTokenizer, folder: Path, recordings: Sequence[Audio]) -> None:
    """What was saved and loaded is the same tokenizer and knows that it is."""
    tokenizer.save(folder)
    loaded = type(tokenizer).load(folder)
    assert loaded.name == tokenizer.name
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.num_units, loaded.frame_rate) == (tokenizer.num_units, tokenizer.frame_rate)
    assert loaded.sample_rate == tokenizer.sample_rate
    for one, other in zip(tokenizer.encode(recordings), loaded.encode(recordings), strict=True):
        assert_same_units(one, other)


def check_batches(tokenizer: SpeechTokenizer, recordings: Sequence[Audio]) -> None:
    """A recording's units never depend on the batch that it came in."""

    @_FEW
    @given(data=st.data())
    def batch_equals_solo(data: st.DataObject) -> None:
        cuts = []
        for audio in recordings:
            seconds = data.draw(st.floats(0.01, audio.seconds))
            cuts.append(Audio(audio.samples[: max(1, int(seconds * audio.sample_rate))], audio.sample_rate))
        order = data.draw(st.permutations(range(len(cuts))))
        together = tokenizer.encode([cuts[index] for index in order])
        for index, units in zip(order, together, strict=True):
            assert_same_units(units, tokenizer.encode([cuts[index]])[0])

    batch_equals_solo()
    assert tokenizer.encode([]) == []


def check_vocoder(vocoder: Vocoder, batch: Sequence[Units], samples_per_frame: int) -> None:
    """As many samples as the frames ask for, at the declared rate, audible, and always the same.

    Args:
        vocoder: what is checked.
        batch: units with durations.
        samples_per_frame: of the vocoder at the units' frame rate.
    """
    assert isinstance(vocoder, Vocoder)
    spoken = vocoder.decode(batch)
    for units, audio in zip(batch, spoken, strict=True):
        assert audio.sample_rate == vocoder.sample_rate
        assert audio.samples.dtype == np.float32
        assert audio.samples.shape == (samples_per_frame * units.num_frames,)
        assert np.isfinite(audio.samples).all()
        assert 1e-3 < np.abs(audio.samples).max() <= 1
    for audio, again in zip(reversed(spoken), vocoder.decode(batch[::-1]), strict=True):
        assert audio.samples.tobytes() == again.samples.tobytes()
    assert vocoder.decode([]) == []
    check_written_units(vocoder, batch, samples_per_frame)


def check_written_units(vocoder: Vocoder, batch: Sequence[Units], samples_per_frame: int) -> None:
    """Units as a model writes them, without durations, last whole frames, and as long in any batch."""
    written = [Units(units.ids, None, units.frame_rate) for units in batch]
    written.append(Units(batch[0].ids[:0], None, batch[0].frame_rate))
    spoken = vocoder.decode(written)
    for units, audio in zip(written, spoken, strict=True):
        assert len(audio.samples) % samples_per_frame == 0
        assert bool(len(audio.samples)) == bool(len(units))
        assert np.abs(audio.samples).max(initial=0) <= 1
        (alone,) = vocoder.decode([units])
        assert alone.samples.tobytes() == audio.samples.tobytes()
        durations = vocoder.durations(units)
        assert durations.shape == units.ids.shape
        assert (durations >= 1).all()
        assert durations.sum() * samples_per_frame == len(audio.samples)
        timed = Units(units.ids, durations.astype(np.uint16), units.frame_rate)
        (alone,) = vocoder.decode([timed])
        assert alone.samples.tobytes() == audio.samples.tobytes()


def check_recognizer(recognizer: Recognizer, recordings: Sequence[Audio]) -> None:
    """A line of text for each recording of any rate, the same in any batch; silence of no length is empty."""
    assert isinstance(recognizer, Recognizer)
    texts = recognizer.transcribe(recordings)
    assert len(texts) == len(recordings)
    for audio, text in zip(recordings, texts, strict=True):
        assert "\n" not in text
        assert recognizer.transcribe([audio]) == [text]
    assert recognizer.transcribe(recordings[::-1]) == texts[::-1]
    nothing = Audio(np.zeros(0, np.float32), recognizer.sample_rate)
    assert recognizer.transcribe([nothing, recordings[0]]) == ["", texts[0]]
    assert recognizer.transcribe([]) == []


def check_synthesizer(synthesizer: Synthesizer, voice: str) -> None:
    """Deterministic bit for bit in any order, at the declared rate, with the times of its words."""
    assert isinstance(synthesizer, Synthesizer)
    assert synthesizer.version
    texts = ("The rabbit ran home.", "Anna saw two red boats. Then she slept.", "castle")
    utterances = [Utterance(text, voice, rate) for text in texts for rate in (150, 220)]
    spoken = synthesizer.synthesize(utterances, 16_000)
    for utterance, speech in zip(utterances, spoken, strict=True):
        assert speech.audio.sample_rate == 16_000
        assert speech.audio.samples.dtype == np.float32
        assert np.isfinite(speech.audio.samples).all()
        assert np.abs(speech.audio.samples).max() > 0.01
        starts = [start for start, _ in speech.word_seconds]
        seconds = [second for _, second in speech.word_seconds]
        words = utterance.text.split()
        assert [utterance.text[start:].split()[0] for start in starts] == words
        assert seconds == sorted(seconds)
        assert len(set(seconds)) == len(seconds)
        assert 0 <= seconds[0] < 0.2
        assert seconds[-1] < speech.audio.seconds
        assert speech.seconds_at(len(utterance.text)) == speech.audio.seconds
    for utterance, speech in zip(reversed(utterances), reversed(spoken), strict=True):
        again = synthesizer.synthesize([utterance], 16_000)[0]
        assert again.audio.samples.tobytes() == speech.audio.samples.tobytes()
        assert again.word_seconds == speech.word_seconds
    slow, fast = spoken[:2]
    assert slow.audio.seconds > fast.audio.seconds
    (high,) = synthesizer.synthesize(utterances[:1], 22_050)
    assert high.audio.sample_rate == 22_050
    assert high.audio.seconds == pytest.approx(slow.audio.seconds, abs=0.001)
    synthesizer.check_voice(voice)
    with pytest.raises(ConfigError, match=r"no voice .* it has \w+"):
        synthesizer.check_voice("no-such-voice")
