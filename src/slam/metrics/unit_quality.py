"""Units, and labels of their frames → how many bits they carry, how pure they are, how well they separate.

Purities and PNMI are HuBERT's (Hsu et al. 2021, section 4.3). ABX (Schatz et al. 2013): of three segments A,
B and X, where A and X share a label, is X nearer to A? Here the distance is the number of edits between the
deduplicated units of two segments, over the longer one's length. Chance is one half.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slam.metrics.preference import Estimate, bootstrap_mean

Counts = npt.NDArray[np.int64]
Speakers = Literal["any", "within", "across"]


def entropy(counts: Counts) -> float:
    """Of the distribution that `counts` estimate, in nats; 0 where nothing was counted."""
    share = counts[counts > 0] / max(1, int(counts.sum()))
    return max(0.0, float(-(share * np.log(share)).sum()))


def perplexity(counts: Counts) -> float:
    """How many equally frequent units would be as hard to guess."""
    return float(np.exp(entropy(counts)))


def bigram_entropy(documents: Iterable[npt.NDArray[np.uint16]], num_units: int) -> float:
    """Entropy of a unit whose predecessor is known, in nats; no pair spans two documents `[N]`."""
    pairs = [one[:-1].astype(np.int64) * num_units + one[1:] for one in documents if len(one) > 1]
    codes, joint = np.unique(np.concatenate([np.zeros(0, np.int64), *pairs]), return_counts=True)
    first = np.bincount(codes // num_units, weights=joint).astype(np.int64)
    return entropy(joint) - entropy(first)


@dataclass(frozen=True)
class Agreement:
    """How far units and labels tell of each other, over frames."""

    label_purity: float  # share of frames whose label is the commonest of their unit
    cluster_purity: float  # share of frames whose unit is the commonest of their label
    pnmi: float  # mutual information over the entropy of the labels
    num_frames: int


def agreement(units: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Agreement | None:
    """Of a unit and a label a frame, both `[F]` and counted from 0; None with fewer than two labels."""
    if not len(labels) or labels.min() == labels.max():
        return None
    width = int(labels.max()) + 1
    codes, joint = np.unique(units.astype(np.int64) * width + labels, return_counts=True)
    of_unit, of_label = np.bincount(codes // width, joint), np.bincount(codes % width, joint)
    unit_best, label_best = np.zeros(len(of_unit), np.int64), np.zeros(len(of_label), np.int64)
    np.maximum.at(unit_best, codes // width, joint)
    np.maximum.at(label_best, codes % width, joint)
    label_entropy = entropy(of_label.astype(np.int64))
    information = label_entropy + entropy(of_unit.astype(np.int64)) - entropy(joint)
    return Agreement(
        label_purity=float(unit_best.sum() / len(labels)),
        cluster_purity=float(label_best.sum() / len(labels)),
        pnmi=min(1.0, max(0.0, information / label_entropy)),
        num_frames=len(labels),
    )


def distances(segments: Sequence[npt.NDArray[np.uint16]]) -> npt.NDArray[np.float64]:
    """Edits over the longer one's length, between any two of `segments` (none empty), `[n, n]`."""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    rows = [segment.tolist() for segment in segments]
    return cdist(rows, rows, scorer=Levenshtein.normalized_distance, dtype=np.float64)


@dataclass(frozen=True)
class Abx:
    """Errors of ABX: their mean over labels, and each label's."""

    error: Estimate  # share of triples, its interval over labels
    by_label: dict[int, float]  # label → mean over all other labels
    num_triples: int


def abx(
    between: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    speakers: npt.NDArray[np.int64] | None = None,
    mode: Speakers = "any",
    *,
    seed: int = 0,
) -> Abx | None:
    """The errors of all triples of some segments: X is nearer to B than to A, or half an error on a tie.

    A label's error is the mean over the labels of B of the share of errors among their triples; the whole
    is the mean over labels of A, so that a frequent label weighs no more than a rare one.

    Args:
        between: distances `[n, n]`.
        labels: of the segments, `[n]`.
        speakers: of the segments, `[n]`; needed but for "any".
        mode: whether all three are one speaker's ("within"), or A and B are one's and X another's
            ("across"), or speakers do not count.
        seed: decides the bootstrap's resamples, which are of labels.

    Returns:
        None if no triple can be formed.
    """
    voices = np.zeros_like(labels) if speakers is None or mode == "any" else speakers
    size = int(labels.max(initial=-1)) + 1
    wrong, total = np.zeros((size, size)), np.zeros((size, size))
    for x, label in enumerate(labels):
        same = labels == label
        same[x] = False
        own = voices == voices[x]
        for voice in np.unique(voices[~own if mode == "across" else own]):
            here = voices == voice
            near, far = between[x, same & here], between[x, (labels != label) & here]
            if not len(near):
                continue
            errors = (near[:, None] > far).sum(axis=0) + 0.5 * (near[:, None] == far).sum(axis=0)
            others = labels[(labels != label) & here]
            wrong[label] += np.bincount(others, errors, minlength=size)
            total[label] += len(near) * np.bincount(others, minlength=size)
    by_label = {
        int(label): float((wrong[label][total[label] > 0] / total[label][total[label] > 0]).mean())
        for label in np.flatnonzero(total.sum(axis=1))
    }
    if not by_label:
        return None
    error = bootstrap_mean(np.array(list(by_label.values())), seed=seed)
    return Abx(error, by_label, int(total.sum()))
