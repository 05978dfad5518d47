import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import sound
from slam.audio import Audio, audio_seconds, find_audio, read_audio, read_blocks, write_audio
from slam.errors import InputError

RATES = (8_000, 16_000, 22_050, 44_100, 48_000)


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_format_and_channel_count_is_read_as_the_same_tone(
    suffix: str, rate: int, channels: int, tmp_path: Path
) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([tone(rate)] * channels, axis=1), rate)
    plain = read_audio(path)
    assert plain.sample_rate == rate
    audio = read_audio(path, 16_000)
    assert audio.sample_rate == 16_000
    assert audio.samples.dtype == np.float32
    assert audio.samples.ndim == 1
    assert audio.seconds == pytest.approx(1.0, abs=0.001)
    inner = slice(4_000, 12_000)  # away from the edges, where codecs and filters fade
    tolerance = 1e-3 if suffix in {"wav", "flac"} else 0.1
    np.testing.assert_allclose(audio.samples[inner], tone(16_000)[inner], atol=tolerance)


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = tmp_path / "two.wav"
    soundfile.write(path, np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1), 16_000)
    np.testing.assert_allclose(read_audio(path).samples, 0.125, atol=1e-4)


def test_resampling_to_the_same_rate_changes_nothing() -> None:
    audio = sound(0.1, 0)
    assert audio.resample(16_000) is audio


def test_resampling_keeps_what_both_rates_can_hold_and_drops_the_rest() -> None:
    low, high = tone(48_000, hertz=3_000), tone(48_000, hertz=10_000)
    resampled = Audio(low + high, 48_000).resample(16_000).samples
    inner = slice(2_000, 14_000)
    np.testing.assert_allclose(resampled[inner], tone(16_000, hertz=3_000)[inner], atol=2e-3)


def test_what_is_written_is_read_again_to_sixteen_bits(tmp_path: Path) -> None:
    audio = sound(0.2, 3)
    for name in ("a.wav", "b.flac"):
        write_audio(tmp_path / "new" / name, audio)
        again = read_audio(tmp_path / "new" / name)
        assert again.sample_rate == audio.sample_rate
        np.testing.assert_allclose(again.samples, audio.samples, atol=1 / 32_768)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.wav", "b.flac"]
    written = [read_audio(tmp_path / "new" / name).samples.tobytes() for name in ("a.wav", "b.flac")]
    assert written[0] == written[1]  # so that units do not depend on the format


@pytest.mark.parametrize("rate", [8_000, 12_000, 16_000, 24_000, 48_000])
def test_opus_is_read_again_at_its_rate_and_length_and_nearly_the_same(rate: int, tmp_path: Path) -> None:
    audio = Audio(tone(rate, hertz=440)[: rate // 3 + 7], rate)
    write_audio(tmp_path / "a.opus", audio)
    again = read_audio(tmp_path / "a.opus")
    assert again.sample_rate == rate
    assert len(again.samples) == len(audio.samples)
    assert audio_seconds(tmp_path / "a.opus") == pytest.approx(audio.seconds, abs=1e-3)
    assert np.corrcoef(again.samples, audio.samples)[0, 1] > 0.95


def test_too_loud_samples_are_clipped_not_wrapped(tmp_path: Path) -> None:
    write_audio(tmp_path / "loud.wav", Audio(np.array([1.5, -1.5, 0.0], np.float32), 16_000))
    np.testing.assert_allclose(read_audio(tmp_path / "loud.wav").samples, [1, -1, 0], atol=1e-4)


def expect(path: Path, reason: str, rate: int | None = None) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_audio(path, rate)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    expect(tmp_path / "none.wav", "no such file")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_file_that_is_no_sound_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"text.{suffix}"
    path.write_bytes(b"this is not sound at all" * 20)
    expect(path, "unreadable")
    path.write_bytes(b"")
    expect(path, "unreadable")


def test_a_folder_named_like_a_sound_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    expect(tmp_path / "folder.wav", "unreadable")


def test_a_file_without_samples_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    expect(tmp_path / "empty.wav", "no samples")


def test_a_file_of_which_resampling_leaves_nothing_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", np.ones(1, np.float32), 44_100)
    assert len(read_audio(tmp_path / "short.wav").samples) == 1
    expect(tmp_path / "short.wav", "no samples", rate=16_000)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    samples = np.zeros(100, np.float32)
    samples[50] = value
    soundfile.write(tmp_path / "bad.wav", samples, 16_000, subtype="FLOAT")
    expect(tmp_path / "bad.wav", "not finite")


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_a_truncated_file_is_named(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, sound(2.0, 4).samples, 16_000)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    expect(path, "cut short|unreadable")


def test_a_wav_written_into_a_pipe_is_whole_though_it_claims_more(tmp_path: Path) -> None:
    path = tmp_path / "piped.wav"
    soundfile.write(path, sound(0.5, 5).samples, 16_000)
    content = bytearray(path.read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"  # the length of the data, unknown when the header was written
    path.write_bytes(content)
    assert len(read_audio(path).samples) == 8_000


def test_sound_files_are_found_by_suffix_in_order(tmp_path: Path) -> None:
    for name in ("b/2.FLAC", "b/1.wav", "a.mp3", "notes.txt", "c.ogg", "d.wav.partial"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in find_audio(tmp_path)]
    assert found == ["a.mp3", "b/1.wav", "b/2.FLAC", "c.ogg"]


def test_links_in_a_circle_are_no_way_to_search_for_ever(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.wav").touch()
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "itself.wav").symlink_to(tmp_path / "itself.wav")
    (tmp_path / "there").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "there")
    assert list(find_audio(tmp_path)) == [tmp_path / "deep" / "a.wav"]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_blocks_end_to_end_are_the_whole_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([sound(1.7, 2, 44_100).samples] * 2, axis=1) * [1, 0.5], 44_100)
    at_once = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
    blocks = list(read_blocks(path, 0.1))
    assert [len(block.samples) for block in blocks[:-1]] == [4_410] * (len(blocks) - 1)
    assert {block.sample_rate for block in blocks} == {44_100}
    np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks]), at_once)
    np.testing.assert_array_equal(read_audio(path).samples, at_once)


def test_a_block_longer_than_the_file_costs_no_more_than_the_file(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", sound(0.5, 0))
    tracemalloc.start()
    try:
        (block,) = read_blocks(tmp_path / "a.wav", 3_600.0)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert block.seconds == 0.5


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_the_length_is_told_without_reading_the_samples(suffix: str, rate: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([sound(1.7, 2, rate).samples] * 2, axis=1), rate)
    assert audio_seconds(path) == pytest.approx(1.7, abs=1e-3)
    assert audio_seconds(path) == read_audio(path).seconds


def test_what_a_header_tells_of_a_bad_file_is_said_as_when_it_is_read(tmp_path: Path) -> None:
    samples = sound(1.0, 0).samples
    for name in ("cut.wav", "cut.au", "empty.wav"):
        soundfile.write(tmp_path / name, samples if name[0] == "c" else samples[:0], 16_000)
    for name in ("cut.wav", "cut.au"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:16_000])
    (tmp_path / "text.wav").write_bytes(b"this is not sound at all" * 20)
    (tmp_path / "folder.wav").mkdir()
    for name in ("cut.wav", "cut.au", "empty.wav", "text.wav", "folder.wav", "none.wav"):
        lines = []
        for ask in (audio_seconds, read_audio):
            with pytest.raises(InputError) as caught:
                ask(tmp_path / name)
            lines.append(str(caught.value))
        assert lines[0] == lines[1]
        assert lines[0].startswith(str(tmp_path / name))


def promising_wav(path: Path) -> None:
    """A kilobyte whose header promises two gigabytes."""
    claim = 2_000_000_000
    form = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    path.write_bytes(
        b"RIFF" + struct.pack("<I", claim + 36) + b"WAVEfmt " + form + b"data" + struct.pack("<I", claim)
    )
    path.write_bytes(path.read_bytes() + bytes(1_000))


def promising_flac(path: Path) -> None:
    """A second whose header promises 2³⁶ - 1 samples, 256 GiB of them."""
    soundfile.write(path, sound(1.0, 0).samples, 16_000)
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)


@pytest.mark.parametrize("make", [promising_wav, promising_flac])
def test_a_header_that_promises_far_too_much_costs_no_memory(make, tmp_path: Path) -> None:
    path = tmp_path / f"much.{make.__name__.removeprefix('promising_')}"
    make(path)
    for ask in (read_audio, audio_seconds, lambda path: list(read_blocks(path))):
        tracemalloc.start()
        try:
            with pytest.raises(
                InputError, match=r"cut short|is damaged; its header promises \d+ s in \d+ bytes"
            ):
                ask(path)
            assert tracemalloc.get_traced_memory()[1] < 20e6
        finally:
            tracemalloc.stop()
