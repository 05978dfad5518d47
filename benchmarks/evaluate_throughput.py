"""Benchmark pairs scored a second: slam against the plain way, from units and from recordings.

The plain way is the reference toolkit's: pairs in list order, batches of 8, for each batch two padded forward
calls of `transformers`, one for the better sides and one for the worse; from recordings each batch is encoded
first, padded, and encoded anew at every call. Ours is the path of `slam evaluate`: each document once, sorted
by length, end to end without padding, beginnings that both sides share said once; units of recordings kept.

Pairs are those of the built-in grammar: words, sentences, stories. Their letters stand in for units, about as
many a word as speech has. Weights are random, of the real sizes.

The gate: every score within 1e-3 nats of the plain way's, and the same accuracy of each set.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from encode_throughput import LAYER, NUM_UNITS, RATE, tokenizer
from side_by_side import arguments, finish, interleaved
from torch.nn import functional
from train_throughput import model

from slam.audio import Audio, read_audio, write_audio
from slam.benchmark_units import Encoders, open_benchmark
from slam.metrics.preference import preferences
from slam.model import SpeechLM
from slam.packing import use_packed
from slam.pair_scoring import score_pairs
from slam.pairs import PairRow, write_pair_rows
from slam.protocols import Utterances, read_protocol
from slam.recordings import find_recordings
from slam.run import write_json_lines
from slam.stories import write_pairs
from slam.units import Ids, Units, Vocabulary

PLAIN_BATCH = 8
TOLERANCE = 1e-3  # nats
SETS = {"swuggy": 600, "sblimp": 400, "storycloze": 120, "topic-storycloze": 120}
VOCABULARY = Vocabulary(NUM_UNITS)
PROTOCOLS = [read_protocol("slam")]


def units(text: str) -> Units:
    """A text's letters, so that equal texts are equal units and others are not; no unit follows itself."""
    letters = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    ids = np.cumsum(1 + letters) % NUM_UNITS
    return Units(ids.astype(np.uint16), None, 25.0)


def pairs(share: float) -> list[Utterances]:
    """A share of each set, set after set."""
    found = []
    for name, count in SETS.items():
        for pair in write_pairs(name, max(8, round(count * share)), split="evaluation", seed=0):
            row = PairRow(pair.id, name, pair.kind, f"{pair.id}-c", f"{pair.id}-r", 0.0, 0.0)
            sides = (units(f"{pair.prompt} {side}".strip()) for side in (pair.chosen, pair.rejected))
            found.append(Utterances(row, *sides))
    return found


def plain_scores(lm: Any, documents: Sequence[Ids]) -> list[float]:
    """Mean log-likelihood of each document of a batch, in one padded forward call."""
    rows = [torch.from_numpy(document.astype(np.int64)) for document in documents]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(lm.device)
    mask = (torch.arange(tokens.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]).to(
        lm.device
    )
    with torch.inference_mode():
        logits = lm(input_ids=tokens, attention_mask=mask.long()).logits[:, :-1].float()
    losses = functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    counted = mask[:, 1:]
    return ((-losses * counted).sum(1) / counted.sum(1)).tolist()


def plain_from_units(lm: Any, some: Sequence[Utterances]) -> np.ndarray:
    """`[B, 2]`."""
    found = []
    for begin in range(0, len(some), PLAIN_BATCH):
        batch = some[begin : begin + PLAIN_BATCH]
        both = [
            plain_scores(lm, [VOCABULARY.document(getattr(pair, side).ids) for pair in batch])
            for side in ("chosen", "rejected")
        ]
        found += list(zip(*both, strict=True))
    return np.array(found)


def write_recordings(folder: Path, count: int) -> None:
    """Pairs of sounds of 1 to 6 seconds, as an imported benchmark lies on disk."""
    random = np.random.default_rng(0)
    rows, manifest = [], []
    for number in range(count):
        for side in ("c", "r"):
            seconds = random.uniform(1, 6)
            samples = random.normal(0, 0.1, int(seconds * RATE)).astype(np.float32)
            path = folder / f"{number:03d}-{side}.wav"
            write_audio(path, Audio(samples, RATE))
            manifest.append({"id": f"{number}-{side}", "audio": path.name})
        rows.append(PairRow(str(number), "sounds", "all", f"{number}-c", f"{number}-r", 0.0, 0.0))
    write_json_lines(folder / "manifest.jsonl", manifest)
    write_pair_rows(folder, rows)


def plain_from_recordings(lm: Any, hubert: Any, folder: Path) -> np.ndarray:
    """Encode a batch of each side, padded, and score it; `[B, 2]`."""
    paths = {one.id: one.path for one in find_recordings(folder)}
    found = []
    names = list(dict.fromkeys(name.split("-")[0] for name in paths))
    for begin in range(0, len(names), PLAIN_BATCH):
        both = []
        for side in ("c", "r"):
            audio = [read_audio(paths[f"{name}-{side}"], RATE) for name in names[begin : begin + PLAIN_BATCH]]
            both.append(plain_scores(lm, [VOCABULARY.document(one.ids) for one in hubert.encode(audio)]))
        found += list(zip(*both, strict=True))
    return np.array(found)


def from_recordings(lm: Any, speech_lm: SpeechLM, folder: Path, count: int) -> dict[str, Any]:
    """The first and the second run over recordings, and the plain way's."""
    write_recordings(folder / "pairs", count)
    hubert = tokenizer(folder, find_recordings(folder / "pairs"))
    hubert.save(folder / "tokenizer")
    encoders = Encoders({hubert.fingerprint: folder / "tokenizer"}, None, folder / "cache", 2)

    def ours() -> np.ndarray:
        benchmark = open_benchmark(folder / "pairs")
        by_name = encoders.units(benchmark, hubert.name, hubert.fingerprint).by_name()
        some = [Utterances(row, by_name[row.chosen], by_name[row.rejected]) for row in benchmark.rows]
        return score_pairs(speech_lm, some, PROTOCOLS)[0]

    begin = time.perf_counter()
    first_scores = ours()
    first = count / (time.perf_counter() - begin)
    speeds = interleaved(
        lambda: speed(ours, count),
        lambda: speed(lambda: plain_from_recordings(lm, hubert, folder / "pairs"), count),
    )
    again = float(np.abs(ours() - first_scores).max())
    difference = float(np.abs(first_scores - plain_from_recordings(lm, hubert, folder / "pairs")).max())
    return {
        "pairs": count,
        "first_run": first,
        "second_run": speeds["ours"],
        "baseline": speeds["baseline"],
        "ratio": speeds["ratio"],
        "ratios": speeds["ratios"],
        "largest_difference_nats": max(again, difference),
    }


def speed(work: Any, count: int) -> float:
    begin = time.perf_counter()
    work()
    return count / (time.perf_counter() - begin)


def main() -> None:
    options = arguments(__doc__ or "")
    transformers.logging.set_verbosity_error()
    lm = model(VOCABULARY).eval()
    packed_lm = model(VOCABULARY).eval()  # the same seed, the same weights
    use_packed(packed_lm)
    speech_lm = SpeechLM(packed_lm, VOCABULARY, "letters", "none")
    some = pairs(0.1 if options.quick else 1.0)
    by_set = {name: [pair for pair in some if pair.row.benchmark == name] for name in SETS}
    expected, found = plain_from_units(lm, some), score_pairs(speech_lm, some, PROTOCOLS)[0]
    accuracies = {
        name: [
            float(preferences(*scores[[pair.row.benchmark == name for pair in some]].T).mean())
            for scores in (found, expected)
        ]
        for name in SETS
    }
    overall = interleaved(
        lambda: speed(lambda: score_pairs(speech_lm, some, PROTOCOLS), len(some)),
        lambda: speed(lambda: plain_from_units(lm, some), len(some)),
    )
    each = {
        name: interleaved(
            lambda group=group: speed(lambda: score_pairs(speech_lm, group, PROTOCOLS), len(group)),
            lambda group=group: speed(lambda: plain_from_units(lm, group), len(group)),
            3,
        )["ratio"]
        for name, group in by_set.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        recordings = from_recordings(lm, speech_lm, Path(folder), 8 if options.quick else 16)
    difference = float(np.abs(found - expected).max())
    gate = {
        "passed": max(difference, recordings["largest_difference_nats"]) < TOLERANCE
        and all(one == other for one, other in accuracies.values()),
        "largest_difference_nats": difference,
        "accuracies_ours_and_plain": accuracies,
    }
    about = {
        "pairs": {name: len(group) for name, group in by_set.items()},
        "mean_tokens_of_a_side": {
            name: round(float(np.mean([len(pair.chosen) + 2 for pair in group])), 1)
            for name, group in by_set.items()
        },
        "num_parameters": sum(weight.numel() for weight in lm.parameters()),
        "hubert_layers": LAYER,
        "ratio_of_each_set": each,
        "from_recordings": recordings,
    }
    finish("evaluate_throughput", "pairs/s", overall | about, gate, options.json)


if __name__ == "__main__":
    main()
