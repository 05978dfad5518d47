"""Pairs of units → documents of tokens to prefer by: the better side and the worse, each after its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slam.errors import InputError
from slam.pairs import Pair
from slam.units import Ids, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """Pairs as documents: the better side and the worse, each after its prompt."""

    chosen: list[Ids]  # [B] documents
    rejected: list[Ids]  # [B]
    skipped: list[int]  # [B] targets that belong to the prompt, the same on both sides

    def costs(self) -> np.ndarray:
        """Tokens in both documents of each pair, `[B]`, the prompt counted twice."""
        return np.array([len(c) + len(r) for c, r in zip(self.chosen, self.rejected, strict=True)])

    def continuation_tokens(self) -> np.ndarray:
        """Tokens that count on each side of each pair, `[2, B]`."""
        sides = (self.chosen, self.rejected)
        return np.array([[len(d) - 1 - s for d, s in zip(side, self.skipped, strict=True)] for side in sides])

    def interleaved(self, *, prompts_once: bool) -> tuple[list[Ids], list[int], list[int]]:
        """Each pair's chosen document, then its rejected one; their skipped targets, their shared tokens.

        With `prompts_once` a rejected document begins at its prompt's last token: its own first follows.
        """
        documents, skipped, shared = [], [], []
        for chosen, rejected, prompt in zip(self.chosen, self.rejected, self.skipped, strict=True):
            begin = prompt if prompts_once else 0
            documents += [chosen, rejected[begin:]]
            skipped += [prompt, prompt - begin]
            shared += [0, begin]
        return documents, skipped, shared

    def take(self, numbers: Sequence[int] | np.ndarray) -> "Preferences":
        """The pairs of these numbers."""
        return Preferences(
            chosen=[self.chosen[n] for n in numbers],
            rejected=[self.rejected[n] for n in numbers],
            skipped=[self.skipped[n] for n in numbers],
        )


def comparable_pairs(pairs: Sequence[Pair], where: Path) -> list[Pair]:
    """The pairs that say something: those whose sides are equal, unit for unit, are left out.

    Args:
        pairs: as read.
        where: the folder they are from, for the line that refuses them.

    Raises:
        InputError: a pair has no prompt, or the sides of all pairs are equal.
    """
    bare = [pair.id for pair in pairs if not len(pair.prompt)]
    if bare:
        raise InputError(
            f"{where}: {len(bare)} of {len(pairs)} pairs have no units before their sides part, the first "
            f"{bare[0]!r}; leave them out of pairs.jsonl, or let their sides start later"
        )
    unequal = [pair for pair in pairs if not np.array_equal(pair.chosen.ids, pair.rejected.ids)]
    if not unequal:
        raise InputError(f"{where}: both sides of every pair are the same units; there is nothing to prefer")
    return unequal


def format_pairs(pairs: Sequence[Pair], vocabulary: Vocabulary, context: int) -> Preferences:
    """Pairs of units → documents of tokens.

    Raises:
        InputError: a continuation alone is longer than the context.
    """
    chosen, rejected, skipped = [], [], []
    for pair in pairs:
        longest = max(len(pair.chosen), len(pair.rejected))
        room = context - longest - 2
        if room < 0:
            raise InputError(
                f"pair {pair.id!r}: a continuation of {longest} units does not fit a context of {context} "
                "tokens; raise context, or leave the pair out"
            )
        prompt = pair.prompt.ids[max(0, len(pair.prompt) - room) :]
        chosen.append(vocabulary.document(np.concatenate([prompt, pair.chosen.ids])))
        rejected.append(vocabulary.document(np.concatenate([prompt, pair.rejected.ids])))
        skipped.append(len(prompt))
    return Preferences(chosen=chosen, rejected=rejected, skipped=skipped)


def divide(
    pairs: Preferences, held_out_share: float, seed: int, where: Path
) -> tuple[Preferences, Preferences]:
    """Pairs to train on and pairs to validate on.

    Raises:
        InputError: there are too few to keep some apart.
    """
    count = len(pairs.chosen)
    num_held_out = max(1, round(held_out_share * count))
    if num_held_out >= count:
        raise InputError(f"{where}: {count} pairs are too few to keep {num_held_out} apart")
    order = np.random.default_rng(seed).permutation(count)
    return pairs.take(order[num_held_out:]), pairs.take(order[:num_held_out])
