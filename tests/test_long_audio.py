import builtins
import importlib.util
import itertools
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import sound
from slam.audio import Audio, read_audio, write_audio
from slam.errors import ConfigError, InputError, MismatchError, MissingExtraError
from slam.long_audio import cut_point, detector, pieces, stream_audio
from slam.voice import Energy, Silero, step_edges, step_power

RATE = 16_000
ENERGY = Energy()


def bursts(lengths: list[tuple[float, float]], *, seed: int = 0, noise: float = 1e-3) -> Audio:
    """Loud, speech-coloured noise for as long as the first of each pair says, then a pause (seconds)."""
    generator = np.random.default_rng(seed)
    parts = []
    for loud, pause in lengths:
        times = np.arange(int(loud * RATE)) / RATE
        swing = 0.15 * (1 + 0.8 * np.sin(2 * np.pi * 4 * times))  # syllables
        parts += [swing * generator.normal(size=len(times)), np.zeros(int(pause * RATE))]
    samples = np.concatenate(parts)
    return Audio((samples + noise * generator.normal(size=len(samples))).astype(np.float32), RATE)


def pauses_of(lengths: list[tuple[float, float]]) -> list[tuple[float, float]]:
    found, now = [], 0.0
    for loud, pause in lengths:
        found.append((now + loud, now + loud + pause))
        now += loud + pause
    return found


@settings(max_examples=30, deadline=None)
@given(
    seconds=st.floats(0.01, 3),
    rates=st.tuples(
        st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000]), st.sampled_from([8_000, 16_000, 24_000])
    ),
    block_seconds=st.floats(0.001, 2),
)
def test_a_stream_is_the_file_read_at_once(
    tmp_path_factory: pytest.TempPathFactory, seconds: float, rates: tuple[int, int], block_seconds: float
) -> None:
    path = tmp_path_factory.mktemp("stream") / "a.wav"
    audio = sound(seconds, 1, rates[0])
    soundfile.write(path, np.stack([audio.samples, audio.samples[::-1]], axis=1), rates[0])
    streamed = np.concatenate(list(stream_audio(path, rates[1], block_seconds)))
    assert streamed.dtype == np.float32
    whole = read_audio(path, rates[1]).samples
    assert len(streamed) == len(whole)
    np.testing.assert_allclose(streamed, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_coded_files_are_streamed_as_they_are_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(2.3, 2, 44_100).samples, 44_100)
    streamed = np.concatenate(list(stream_audio(path, RATE, 0.1)))
    at_once = Audio(soundfile.read(path, dtype="float32")[0], 44_100).resample(RATE)
    np.testing.assert_allclose(streamed, at_once.samples, rtol=0, atol=1e-6)
    np.testing.assert_allclose(streamed, read_audio(path, RATE).samples, rtol=0, atol=1e-6)


def test_blocks_are_no_longer_than_asked_for(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", sound(1.05, 0))
    lengths = [len(block) for block in stream_audio(tmp_path / "a.wav", RATE, 0.25)]
    assert lengths == [4_000] * 4 + [800]


def write_bad(path: Path, kind: str) -> None:
    samples = sound(2.0, 4).samples
    if kind == "text":
        path.write_bytes(b"this is not sound at all" * 20)
    elif kind == "empty":
        soundfile.write(path, samples[:0], RATE)
    elif kind == "nothing left":
        soundfile.write(path, samples[:1], 44_100)
    elif kind == "not finite":
        soundfile.write(path, np.append(samples, np.float32(np.nan)), RATE, subtype="FLOAT")
    elif kind == "cut":
        soundfile.write(path, samples, RATE)
        path.write_bytes(path.read_bytes()[:40_000])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file"),
        ("text", "unreadable"),
        ("empty", "no samples"),
        ("nothing left", "no samples"),
        ("not finite", "not finite"),
        ("cut", r"cut short; 1\.25 seconds are left"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_as_when_it_is_read_at_once(
    kind: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.wav"
    write_bad(path, kind)
    lines = []
    for read in (
        lambda: list(stream_audio(path, RATE, 0.3)),
        lambda: list(pieces(path, RATE, max_seconds=1, detector=ENERGY)),
        lambda: read_audio(path, RATE),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            read()
        lines.append(str(caught.value))
    assert len(set(lines)) == 1
    assert "\n" not in lines[0]


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 12 * RATE),
    max_seconds=st.floats(1, 6),
    rate=st.sampled_from([RATE, 11_025]),
    seed=st.integers(0, 99),
)
def test_pieces_are_the_recording_none_lost_and_none_twice(
    tmp_path_factory: pytest.TempPathFactory, length: int, max_seconds: float, rate: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "a.wav"
    soundfile.write(path, sound(12.0, seed).samples[:length], RATE)
    whole = np.concatenate(list(stream_audio(path, rate)))
    found = list(pieces(path, rate, max_seconds=max_seconds, detector=ENERGY))
    lengths = np.array([len(piece.audio.samples) for piece in found])
    assert {piece.audio.sample_rate for piece in found} == {rate}
    assert [piece.start for piece in found] == [0, *np.cumsum(lengths)[:-1].tolist()]
    assert lengths.max() <= max_seconds * rate
    assert lengths.min() > 0
    assert (lengths[:-1] > (max_seconds / 2 - 0.03) * rate).all()
    np.testing.assert_array_equal(np.concatenate([piece.audio.samples for piece in found]), whole)
    assert found[-1].start_seconds == pytest.approx((lengths.sum() - lengths[-1]) / rate)


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2])
@pytest.mark.parametrize("max_seconds", [4.0, 7.5])
def test_every_cut_falls_in_a_pause(max_seconds: float, noise: float, tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    lengths = [(generator.uniform(0.4, 1.4), generator.uniform(0.25, 0.5)) for _ in range(40)]
    write_audio(tmp_path / "a.wav", bursts(lengths, noise=noise))
    found = list(pieces(tmp_path / "a.wav", RATE, max_seconds=max_seconds, detector=ENERGY))
    cuts = [piece.start_seconds for piece in found[1:]]
    assert len(cuts) >= 7
    for cut in cuts:
        assert any(start < cut < end for start, end in pauses_of(lengths)), cut


def test_a_cut_is_in_the_middle_of_the_longest_pause_of_the_later_half() -> None:
    window = Audio(np.zeros(RATE * 2, np.float32), RATE)  # 200 steps
    voice = np.ones(200, np.float32)
    voice[10:60] = 0  # longer, but too early
    voice[110:120] = voice[140:160] = voice[190:195] = 0.4
    assert cut_point(window, voice) == 150 * RATE // 100
    voice[120:130] = 0.2  # now two are equally long: the later one makes the longer piece
    assert cut_point(window, voice) == 150 * RATE // 100
    voice[130] = 0.2
    assert cut_point(window, voice) == int(120.5 * RATE / 100)


def test_where_voice_is_everywhere_the_cut_is_at_the_least_likely_and_quietest_step() -> None:
    samples = np.tile(np.array([0.5, -0.5], np.float32), RATE)
    samples[130 * 160 : 131 * 160] *= 0.1
    samples[170 * 160 : 171 * 160] *= 0.2
    samples[20 * 160 : 21 * 160] = 0  # too early
    window = Audio(samples, RATE)
    voice = np.ones(200, np.float32)
    assert cut_point(window, voice) == int(130.5 * 160)
    voice[[160, 170]] = 0.7
    assert cut_point(window, voice) == int(170.5 * 160)


def test_a_recording_that_fits_is_one_piece(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", sound(2.0, 0))
    (piece,) = pieces(tmp_path / "a.wav", RATE, max_seconds=2.0, detector=ENERGY)
    assert (piece.start, len(piece.audio.samples)) == (0, 2 * RATE)


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    path, size = tmp_path / "long.wav", 120 * RATE * 4
    soundfile.write(path, np.tile(sound(10.0, 0).samples, 12), RATE)
    list(pieces(path, RATE, max_seconds=1, detector=ENERGY))  # what is imported now is not counted below
    tracemalloc.start()
    try:
        count = sum(1 for _ in pieces(path, RATE, max_seconds=2, detector=ENERGY))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count >= 60
    assert peak < size / 4


@pytest.mark.parametrize("max_seconds", [0.0, 0.99, -5.0, float("nan")])
def test_pieces_too_small_to_cut_in_are_refused(max_seconds: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"max_seconds = {max_seconds}"):
        list(pieces(tmp_path / "a.wav", RATE, max_seconds=max_seconds, detector=ENERGY))


def test_a_detector_with_another_step_is_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", sound(3.0, 0))

    def every_frame(audio: Audio) -> np.ndarray:
        return np.zeros(len(audio.samples) // 512, np.float32)

    with pytest.raises(MismatchError, match="gave 62 probabilities for 200 steps of 10 ms"):
        list(pieces(tmp_path / "a.wav", RATE, max_seconds=2, detector=every_frame))


@given(length=st.integers(0, 3_000), rate=st.sampled_from([8_000, 11_025, RATE, 22_050]))
def test_steps_cover_the_sound_in_ten_milliseconds_each(length: int, rate: int) -> None:
    generator = np.random.default_rng(length)
    audio = Audio(generator.normal(size=length).astype(np.float32) + 3, rate)
    edges = step_edges(audio)
    assert edges[0] == 0
    assert edges[-1] == length
    sizes = np.diff(edges)
    assert (np.abs(sizes[:-1] - rate / 100) < 1).all()
    assert (sizes > 0).all()
    expected = [audio.samples[a:b].astype(float).var() for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(step_power(audio), expected, atol=1e-9)
    assert ENERGY(audio).shape == (len(edges) - 1,)


@pytest.mark.parametrize("gain", [1.0, 0.01])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_voice_is_what_stands_out_of_the_noise_floor_at_any_loudness(gain: float, offset: float) -> None:
    lengths = [(1.0, 0.6), (0.7, 0.8), (2.0, 1.0)]
    audio = bursts(lengths)
    voice = ENERGY(Audio((gain * (audio.samples + offset)).astype(np.float32), RATE))
    assert voice.dtype == np.float32
    assert 0 <= voice.min() <= voice.max() <= 1
    times = (np.arange(len(voice)) + 0.5) / 100
    # syllables are loud, and the hangover ends 0.1 s (and a step of smoothing) after the burst
    silent = np.any([(times > a + 0.12) & (times < b - 0.02) for a, b in pauses_of(lengths)], axis=0)
    loud = np.all([(times < a) | (times > b) for a, b in pauses_of(lengths)], axis=0)
    assert (voice[silent] < 0.5).all()
    assert (voice[loud] >= 0.5).mean() > 0.97
    just_after = (times > 1.0) & (times < 1.09)
    assert (voice[just_after] >= 0.5).all()


@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.1])
def test_steady_noise_and_silence_are_no_voice(noise: float) -> None:
    samples = noise * np.random.default_rng(0).normal(size=5 * RATE)
    assert (ENERGY(Audio(samples.astype(np.float32), RATE)) < 0.5).all()


def test_where_there_is_digital_silence_the_noise_of_the_room_is_still_no_voice() -> None:
    room = bursts([(2.0, 1.0), (2.0, 1.0)], noise=1e-3).samples
    voice = ENERGY(Audio(np.concatenate((room, np.zeros(3 * RATE, np.float32))), RATE))
    assert (voice[np.r_[220:295, 520:895]] < 0.5).all()
    assert (voice[:200] >= 0.5).mean() > 0.9


def test_detectors_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(detector("energy"), Energy)
    assert isinstance(detector("slam.voice:Energy"), Energy)
    with pytest.raises(ConfigError, match="no voice detector is called 'enrgy'; did you mean 'energy'"):
        detector("enrgy")
    real = builtins.__import__

    def without_silero(name: str, *args: object) -> object:
        if name == "silero_vad":
            raise ModuleNotFoundError(name=name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_silero)
    with pytest.raises(MissingExtraError, match=r"pip install 'slam\[silero\]'"):
        detector("silero")


class Network:
    """In place of the package's: frame `k` has the probability `k / 1000`."""

    def audio_forward(self, samples, rate):
        import torch

        frame = rate * 32 // 1000
        return torch.arange(-(-samples.shape[1] // frame))[None] / 1000


@pytest.mark.parametrize("rate", [8_000, RATE, 44_100])
def test_each_step_takes_the_probability_of_the_frame_it_lies_in(
    rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slam.voice._silero_model", Network)
    voice = Silero()(sound(1.0, 0, rate))
    expected = [int((step + 0.5) * 10 / 32) for step in range(100)]
    assert np.rint(voice * 1000).astype(int).tolist() == expected
    assert Silero()(Audio(np.zeros(0, np.float32), rate)).shape == (0,)


@pytest.mark.skipif(importlib.util.find_spec("silero_vad") is None, reason="silero-vad is not installed")
def test_silero_hears_speech_and_keeps_the_number_of_threads(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    for name in ("silero_vad", "silero_vad.model"):  # the first import sets the number of threads
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        silero = detector("silero")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    path = min((shared_data / "librispeech").rglob("*.flac"))
    speech = read_audio(path, RATE).samples
    pause = np.zeros(2 * RATE, np.float32)
    audio = Audio(np.concatenate((pause, speech, pause)), RATE)
    voice = silero(audio)
    np.testing.assert_array_equal(voice, silero(audio))
    assert (voice[:180] < 0.5).all()
    assert (voice[-150:] < 0.5).all()
    assert (voice[200:-200] >= 0.5).mean() > 0.5
