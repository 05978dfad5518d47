"""Chunks against the vocoder's sound of the whole: as long, as smooth, and where it can be, the same."""

from itertools import pairwise

import numpy as np
import pytest

import toy_language
from slam.streaming import Stream
from slam.units import Units
from slam.vocoders.griffin_lim import GriffinLim
from slam.vocoders.unit_hifigan import UnitHiFiGAN
from slam.vocoders.unit_mel import UnitMel, about, new_networks
from tiny_vocoders import SPEAKS_25_HZ, save_vocoder

RATE = 16_000


@pytest.fixture(scope="module", params=["griffin-lim", "unit-hifigan", "unit-mel"])
def vocoder(request, tmp_path_factory):
    tokenizer = toy_language.tokenizer()
    if request.param == "griffin-lim":
        return GriffinLim.for_tokenizer(tokenizer)
    if request.param == "unit-hifigan":
        folder = save_vocoder(tmp_path_factory.mktemp("hifigan"), SPEAKS_25_HZ)
        return UnitHiFiGAN.for_tokenizer(tokenizer, folder=folder)
    description = about(tokenizer, 16)
    return UnitMel(new_networks(description).eval(), description)


def said(length, seed=0):
    return np.random.default_rng(seed).integers(0, toy_language.NUM_UNITS, length).astype(np.uint16)


def streamed(vocoder, ids, most=1000):
    stream = Stream(iter(ids.tolist()), vocoder, toy_language.FRAME_RATE, begun=0.0, most=most)
    return stream, list(stream)


def whole(vocoder, ids):
    return vocoder.decode([Units(ids, None, toy_language.FRAME_RATE)])[0].samples


@pytest.mark.parametrize("length", [1, 7, 8, 15, 16, 17, 39, 40, 41, 150])
def test_chunks_end_to_end_are_as_long_as_the_whole(vocoder, length):
    ids = said(length, seed=length)
    stream, chunks = streamed(vocoder, ids)
    assert stream.units == ids.tolist()
    assert sum(len(chunk.samples) for chunk in chunks) == len(whole(vocoder, ids))
    assert all(chunk.sample_rate == RATE for chunk in chunks)
    assert all(len(chunk.samples) for chunk in chunks)
    assert (len(chunks) > 1) == (length >= 16)


def steps_at_seams_and_inside(vocoder, ids):
    _, chunks = streamed(vocoder, ids)
    assert len(chunks) > 4
    seams = [abs(after.samples[0] - before.samples[-1]) for before, after in pairwise(chunks)]
    return np.array(seams), np.concatenate([np.abs(np.diff(chunk.samples)) for chunk in chunks])


def test_no_step_at_a_seam_is_larger_than_those_inside(vocoder):
    seams, inside = steps_at_seams_and_inside(vocoder, said(150))
    assert seams.max() <= inside.max()


def test_seams_do_not_click():
    """In a low hum, whose phases are others in each chunk, steps at seams are as small as everywhere."""
    generator = np.random.default_rng(0)
    tilted = np.linspace(3, -9, 80) + 0.3 * generator.normal(size=(toy_language.NUM_UNITS, 80))
    hum = GriffinLim(tilted.astype(np.float32), np.full(toy_language.NUM_UNITS, 2.0, np.float32))
    seams, inside = (
        np.concatenate(some)
        for some in zip(*(steps_at_seams_and_inside(hum, said(120, seed)) for seed in range(3)), strict=True)
    )
    assert np.sqrt((seams**2).mean()) < 1.5 * np.sqrt((inside**2).mean())


def test_away_from_seams_the_sound_is_that_of_the_whole(vocoder):
    """To the last bits where the vocoder hears only so far; a search for phases ends elsewhere each time."""
    ids = said(150)
    _, chunks = streamed(vocoder, ids)
    found, expected = np.concatenate([chunk.samples for chunk in chunks]), whole(vocoder, ids)
    difference = np.abs(found - expected)
    if vocoder.name == "unit-hifigan":
        assert difference.max() < 1e-5
    elif vocoder.name == "unit-mel":
        assert np.median(difference) < 0.02 * np.abs(expected).mean()
    else:
        one, other = (
            np.abs(np.fft.rfft(some[: len(some) // 640 * 640].reshape(-1, 640))).sum(1)
            for some in (found, expected)
        )
        assert np.corrcoef(one, other)[0, 1] > 0.7  # as loud at the same times


def test_the_first_chunk_comes_before_the_last_unit_is_drawn(vocoder):
    drawn = []

    def draw():
        for unit in said(60).tolist():
            drawn.append(unit)
            yield unit

    stream = Stream(draw(), vocoder, toy_language.FRAME_RATE, begun=0.0, most=60)
    assert stream.seconds_to_first_sound is None
    assert stream.real_time_factor is None
    next(stream)
    assert len(drawn) == len(stream.units) == 16
    assert stream.ended is None
    assert stream.seconds_to_first_sound > 0
    assert len(list(stream)) == 2
    assert len(drawn) == 60
    assert stream.ended is False


def test_a_model_that_ends_at_once_is_heard_as_nothing(vocoder):
    stream, chunks = streamed(vocoder, said(0))
    assert (chunks, stream.units, stream.ended) == ([], [], True)
    assert stream.real_time_factor is None


def test_what_happens_between_chunks_is_not_counted(vocoder, monkeypatch):
    clock = iter(range(0, 10_000, 1))
    monkeypatch.setattr("slam.streaming.time.perf_counter", lambda: float(next(clock)))
    stream = Stream(iter(said(60).tolist()), vocoder, toy_language.FRAME_RATE, begun=-3.0, most=60)
    seconds = 0.0
    for number, chunk in enumerate(stream, 1):
        seconds += chunk.seconds
        for _ in range(100):
            next(clock)
        # three seconds before, and one from the beginning to the end of each call
        assert stream.real_time_factor == pytest.approx((3 + number) / seconds)
    assert stream.seconds_to_first_sound == 4
