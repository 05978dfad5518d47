"""A language of units that two layers learn in seconds: each utterance counts upwards by its own stride.

After two units the rest is certain, so what a model should know is known: a continuation that goes on
counting is right, one that does not is wrong.
"""

import numpy as np

from slam.architecture import Architecture
from slam.model import SpeechLM, new_lm
from slam.pairs import PairRow, write_pair_rows
from slam.shards import describe, frame_documents, write_split
from slam.tokenizers.logmel_kmeans import LogMelKMeans
from slam.units import Units, Vocabulary, finish_units, write_shard

NUM_UNITS = 12
FRAME_RATE = 25.0
STRIDES = (1, 5)
VOCABULARY = Vocabulary(NUM_UNITS)
ARCHITECTURE = Architecture(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2)


def tokenizer():
    """Twelve units that stand for twelve spectra; nothing was fitted."""
    generator = np.random.default_rng(7)
    return LogMelKMeans(
        generator.normal(size=(NUM_UNITS, 80)).astype(np.float32),
        np.full(80, -4.0, np.float32),
        np.ones(80, np.float32),
        np.full(NUM_UNITS, 2.0, np.float32),
    )


def count(start, stride, length):
    """`length` units that count upwards by `stride`."""
    return (start + stride * np.arange(length)) % NUM_UNITS


def utterances(number, seed=0, shortest=4, longest=14):
    """Counting utterances of random start, stride and length."""
    generator = np.random.default_rng(seed)
    return [
        count(generator.integers(NUM_UNITS), generator.choice(STRIDES), generator.integers(shortest, longest))
        for _ in range(number)
    ]


def write_units(folder, named, fingerprint=None):
    """A folder as `slam encode` leaves one: `named` maps an utterance's id to its units, a frame each."""
    units = [
        Units(np.asarray(ids, np.uint16), np.ones(len(ids), np.uint16), FRAME_RATE) for ids in named.values()
    ]
    write_shard(folder, 0, units, [{"id": name, "seconds": 1.0} for name in named])
    spoken = tokenizer()
    spoken.save(folder / "tokenizer")
    finish_units(
        folder,
        num_units=NUM_UNITS,
        tokenizer=spoken.name,
        fingerprint=fingerprint or spoken.fingerprint,
        frame_rate=FRAME_RATE,
        num_shards=1,
    )
    return folder


def write_pairs(folder, pairs, fingerprint=None):
    """An encoded folder of pairs: `(id, benchmark, kind, prompt, chosen, rejected)`, lists of units."""
    named, rows = {}, []
    for name, benchmark, kind, prompt, chosen, rejected in pairs:
        for side, ids in (("chosen", chosen), ("rejected", rejected)):
            named[f"{name}-{side}"] = [*prompt, *ids]
        seam = len(prompt) / FRAME_RATE
        rows.append(PairRow(name, benchmark, kind, f"{name}-chosen", f"{name}-rejected", seam, seam))
    write_units(folder, named, fingerprint)
    write_pair_rows(folder, rows)
    return folder


def counting_pairs(number, seed=0, benchmark="counting"):
    """A prompt that counts; the better side goes on, the worse one changes its stride."""
    generator = np.random.default_rng(seed)
    pairs = []
    for index in range(number):
        start, turn = generator.integers(NUM_UNITS), generator.integers(2)
        stride, wrong = STRIDES[turn], STRIDES[1 - turn]
        length = int(generator.integers(3, 7))
        following = start + stride * (length - 1)
        sides = [count(following + step, step, int(generator.integers(3, 6))) for step in (stride, wrong)]
        prompt = count(start, stride, length)
        pairs.append((f"pair-{index}", benchmark, f"by {stride}", prompt, *sides))
    return pairs


def write_shards(folder, training, validation):
    """Token shards of two lists of utterances."""
    for split, documents in (("train", training), ("validation", validation)):
        ids = np.concatenate(documents).astype(np.uint16)
        write_split(folder, split, *frame_documents(ids, np.cumsum([len(d) for d in documents]), VOCABULARY))
    spoken = tokenizer()
    describe(folder, vocabulary=VOCABULARY, tokenizer=spoken.name, fingerprint=spoken.fingerprint, counts={})
    return folder


def new_toy_lm(seed=0, context=64):
    """An untrained Qwen2 of two layers."""
    return new_lm(
        VOCABULARY,
        base=None,
        initialization="random",
        architecture=ARCHITECTURE,
        context=context,
        rope_theta=None,
        seed=seed,
    )


def write_lm(folder, lm=None):
    """A speech LM as `slam pretrain` leaves one, but for its run.json."""
    spoken = tokenizer()
    SpeechLM(lm or new_toy_lm(), VOCABULARY, spoken.name, spoken.fingerprint).save(folder)
    return folder
