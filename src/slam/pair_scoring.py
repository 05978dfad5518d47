"""A speech LM and pairs of utterances → log-likelihoods of both sides, by any number of protocols at once.

Every distinct document goes through the model once: equal ones are scored together, and where both sides of a
pair begin alike, the second goes on from the first. Documents of like length lie end to end, without padding.
A document's score is then a sum over some of its tokens, so protocols that differ only in what counts cost
nothing more.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slam import world
from slam.errors import InputError
from slam.packing import by_length, check_length, packed, token_log_likelihoods
from slam.pairs import PairRow
from slam.protocols import Protocol, Side, Utterances, shared_length, sides
from slam.threads import one_thread
from slam.units import Ids, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from slam.model import SpeechLM

Values = npt.NDArray[np.float32]
_PAIRS_AT_ONCE = 2048  # whose log-likelihoods are in memory together
_MOST_ON_CPU = 1024  # tokens in a pass: what its layers hand on should stay in the core's cache
_MOST_ON_ACCELERATOR = 16_384
_LEAST_SHARED = 8  # tokens; to go on from fewer costs more than to say them again


def score_pairs(
    speech_lm: "SpeechLM",
    pairs: Sequence[Utterances],
    protocols: Sequence[Protocol],
    *,
    most_tokens: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> npt.NDArray[np.float64]:
    """Scores of the better and the worse side of each pair by each protocol, `[P, B, 2]` nats.

    Args:
        speech_lm: its model uses the packed attention (`slam.packing.use_packed`).
        pairs: `[B]`.
        protocols: `[P]`.
        most_tokens: in one forward pass; None lets the device decide.
        advance: told how many pairs were scored since it was last called.

    Raises:
        InputError: a score is not a number, a document is longer than the model has positions for, or a
            protocol needs what a pair does not have.
    """
    if most_tokens is None:
        most_tokens = _MOST_ON_CPU if speech_lm.lm.device.type == "cpu" else _MOST_ON_ACCELERATOR
    found = np.empty((len(protocols), len(pairs), 2))
    for begin in range(0, len(pairs), _PAIRS_AT_ONCE):
        some = pairs[begin : begin + _PAIRS_AT_ONCE]
        for opening, deduplicated in dict.fromkeys((p.opening, p.deduplicated) for p in protocols):
            alike = [
                number
                for number, p in enumerate(protocols)
                if (p.opening, p.deduplicated) == (opening, deduplicated)
            ]
            cut = [[sides(one.row, one.chosen, one.rejected, protocols[n]) for one in some] for n in alike]
            documents = [
                tuple(_document(side, speech_lm.vocabulary, opening=opening) for side in both)
                for both in cut[0]
            ]
            values = pair_values(speech_lm.lm, documents, most_tokens=most_tokens)
            for number, both_sides in zip(alike, cut, strict=True):
                for index, (both, scored) in enumerate(zip(both_sides, values, strict=True)):
                    for side in range(2):
                        found[number, begin + index, side] = _score(
                            scored[side], both[side], protocols[number], some[index].row
                        )
        advance(len(some))
    return found


def _document(side: Side, vocabulary: Vocabulary, *, opening: bool) -> Ids:
    """`<S>` if asked for, the units, and always `<S>` at the end: whether it counts is seen later."""
    document = vocabulary.document(side.ids)
    return document if opening else document[1:]


def _score(values: Values, side: Side, protocol: Protocol, row: PairRow) -> float:
    """What counts of a document's log-likelihoods."""
    offset = 0 if protocol.opening else 1  # the first unit is predicted by <S> alone
    begin = max(0, side.seam - offset)
    end = side.onset - offset
    if protocol.part != "onset":
        end = len(values) if protocol.closing else len(values) - 1
    if end <= begin:
        raise InputError(f"pair {row.id!r}: nothing of a side counts by the protocol {protocol.name}")
    counted = values[begin:end].astype(np.float64)
    score = float(counted.sum() if protocol.summed else counted.mean())
    if not np.isfinite(score):
        raise InputError(
            f"pair {row.id!r}: its log-likelihood is not a number; the model's weights are broken"
        )
    return score


def pair_values(
    lm: "PreTrainedModel", pairs: Sequence[tuple[Ids, ...]], *, most_tokens: int
) -> list[tuple[Values, ...]]:
    """Log-likelihoods of the tokens after the first of both documents of each pair, fp32 nats.

    Args:
        lm: uses the packed attention.
        pairs: two documents of tokens each, boundaries included.
        most_tokens: in one forward pass.

    Raises:
        InputError: a document is longer than the model has positions for.
    """
    import torch

    keys: dict[bytes, int] = {}
    documents: list[Ids] = []
    numbers = []
    for pair in pairs:
        for document in pair:
            if keys.setdefault(document.tobytes(), len(documents)) == len(documents):
                documents.append(document)
        numbers.append(tuple(keys[document.tobytes()] for document in pair))
    check_length(lm, max(map(len, documents), default=0))
    values: list[Values] = [np.zeros(0, np.float32)] * len(documents)
    training = lm.training
    lm.train(mode=False)

    def fill(group: Sequence[_Job]) -> None:
        with torch.no_grad(), one_thread() if beside > 1 else nullcontext():
            _fill(lm, documents, group, values)

    # cores share a pass badly: the products of a small model are over before they are divided
    beside = torch.get_num_threads() if lm.device.type == "cpu" and world.size() == 1 else 1
    workers = ThreadPoolExecutor(beside)
    try:
        deque(workers.map(fill, _passes(documents, numbers, most_tokens)), maxlen=0)
    finally:
        workers.shutdown(cancel_futures=True)
        lm.train(training)
    return [tuple(values[number] for number in pair) for pair in numbers]


@dataclass(frozen=True)
class _Job:
    """A document, or two of which the second goes on from a shared beginning."""

    first: int
    second: int | None = None
    shared: int = 0  # tokens that are not said again; the last shared one is, since it predicts


def _passes(
    documents: Sequence[Ids], pairs: Sequence[tuple[int, ...]], most_tokens: int
) -> Iterator[list[_Job]]:
    """Every document in one job, jobs of a kind and of like length together."""
    branches: list[_Job] = []
    taken: set[int] = set()
    for first, second in pairs:
        shared = shared_length(documents[first], documents[second]) - 1
        if shared >= _LEAST_SHARED and first != second and not {first, second} & taken:
            branches.append(_Job(first, second, shared))
            taken |= {first, second}
    alone = [_Job(number) for number in range(len(documents)) if number not in taken]
    for jobs in (alone, branches):
        lengths = [
            len(documents[job.first]) + (0 if job.second is None else len(documents[job.second]) - job.shared)
            for job in jobs
        ]
        for group in by_length(lengths, most_tokens):
            yield [jobs[index] for index in group]


def _fill(
    lm: "PreTrainedModel", documents: Sequence[Ids], group: Sequence[_Job], values: list[Values]
) -> None:
    """One forward pass."""
    row, shared = [], []
    for job in group:
        row.append(documents[job.first])
        shared.append(0)
        if job.second is not None:
            row.append(documents[job.second][job.shared :])
            shared.append(job.shared)
    batch = packed(row, lm.device, shared=shared if any(shared) else ())
    scored: Tensor = token_log_likelihoods(lm, batch)
    parts = np.split(scored.cpu().numpy(), np.cumsum(batch.lengths)[:-1])
    found = iter(part[:-1] for part in parts)  # nothing follows a document's last token
    for job in group:
        values[job.first] = next(found)
        if job.second is not None:
            values[job.second] = np.concatenate((values[job.first][: job.shared], next(found)))
