"""A speech LM in training and encoded benchmarks → its accuracy on a few pairs of each, time and again.

The pairs are drawn once, so the curve is of one set; they are few, so it is cheap and its steps are coarse.
What is reported in the end is `slam evaluate`'s to say.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slam.benchmark_units import open_benchmark, utterances
from slam.errors import InputError
from slam.metrics.preference import groups, preferences
from slam.protocols import DEFAULT, Utterances, read_protocol
from slam.units import read_units

if TYPE_CHECKING:
    from slam.guard_rails import Look
    from slam.model import SpeechLM


def benchmark_accuracy(
    speech_lm: "SpeechLM", folders: Sequence[Path], *, num_pairs: int, seed: int, most_tokens: int
) -> "Look":
    """Look at the accuracy on `num_pairs` of each benchmark, by the default protocol.

    Args:
        speech_lm: its model uses the packed attention.
        folders: of encoded pairs.
        num_pairs: of each benchmark, drawn by the seed; all where there are fewer.
        seed: of the draw.
        most_tokens: in one forward pass.

    Raises:
        InputError: a folder holds no encoded pairs.
        MismatchError: they are of another tokenizer.
    """
    from slam.pair_scoring import score_pairs

    watched: dict[str, list[Utterances]] = {}
    for folder in folders:
        benchmark = open_benchmark(folder)
        if not benchmark.is_encoded:
            raise InputError(f"{folder}: holds recordings; encode them first, to watch the training by them")
        units = read_units(folder)
        speech_lm.check_tokenizer(units.tokenizer, units.tokenizer_fingerprint, folder)
        for name, numbers in groups([row.benchmark for row in benchmark.rows]).items():
            drawn = np.random.default_rng(seed).permutation(numbers)[:num_pairs]
            watched[name] = utterances([benchmark.rows[number] for number in sorted(drawn)], units, folder)
    protocols = [read_protocol(DEFAULT)]

    def look(poll: Callable[[], None]) -> dict[str, float]:
        found = {}
        for name, pairs in watched.items():
            poll()
            (scores,) = score_pairs(speech_lm, pairs, protocols, most_tokens=most_tokens)
            found[f"validation_accuracy_{name}"] = float(preferences(*scores.T).mean())
        return found

    return look
