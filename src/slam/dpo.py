"""A speech LM and preference pairs → a tuned speech LM, by direct preference optimisation.

The reference is the model as it was: its log-likelihoods are computed once, before the first step, so no
second model is held. A pair is formatted as the paper's recipe does: `<S>` and the prompt, then a
continuation and `<S>`; only the continuation counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from slam import world
from slam.budget import ScheduleName, TrainingConfig
from slam.errors import ConfigError, InputError
from slam.pairs import Pair, read_pairs
from slam.run import Results, joint_stage, source
from slam.shards import Batches
from slam.units import Ids, Vocabulary, read_units

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from slam.packing import Fill, Packed
    from slam.training import Task


LossName = Literal["dpo", "ipo", "simpo", "orpo"]
REFERENCE_FREE = ("simpo", "orpo")


@dataclass(frozen=True, kw_only=True)
class DpoConfig(TrainingConfig):
    """Settings of `slam dpo`; defaults are the paper's (Table 5)."""

    model: Path = source(required=True)
    """The speech LM to tune; also the reference."""
    pairs: Path = source(required=True)
    """Encoded preference pairs: a folder of units with pairs.jsonl."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Who updates the body's matrices; AdamW always updates embeddings, biases and gains."""
    learning_rate: float = 5e-5
    """Peak learning rate of AdamW."""
    schedule: ScheduleName = "inverse-sqrt"
    """Shape of the learning rate over the share of the budget spent."""
    loss: LossName = "dpo"
    """What is minimised; simpo and orpo need no reference. The paper's is dpo."""
    beta: float = 0.1
    """How strongly the model is held to the reference; in simpo the margin's factor, in orpo a weight."""
    label_smoothing: float = 0.0
    """With dpo, the share of pairs taken to be labelled the wrong way round (conservative DPO)."""
    simpo_margin: float = 0.5
    """With simpo, what the difference of mean log-likelihoods times beta should exceed."""
    sft_weight: float = 0.0
    """Weight of the chosen side's own loss, in nats a token; keeps its likelihood from falling."""
    batch_pairs: int = 64
    """Pairs in an update."""
    held_out_share: float = 0.1
    """Share of the pairs kept for validation."""
    context: int = 1024
    """Most tokens in prompt and continuation; the prompt is cut from its left."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0 or self.batch_pairs < 1 or not 0 < self.held_out_share < 1:
            raise ConfigError("beta and batch_pairs must be more than 0, held_out_share between 0 and 1")
        if not 0 <= self.label_smoothing < 0.5:  # noqa: PLR2004 - at one half, labels say nothing
            raise ConfigError(f"label_smoothing = {self.label_smoothing}: must be 0 or more and below 0.5")
        if self.label_smoothing and self.loss != "dpo":
            raise ConfigError(f'label_smoothing goes with loss = "dpo" only, not {self.loss!r}')
        if self.sft_weight < 0:
            raise ConfigError("sft_weight must not be negative")


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


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What the loss needs of a row's pairs."""

    skipped: tuple[int, ...]  # [2 B] targets that belong to the prompts, pair by pair as in the row
    reference: "Tensor"  # [2 B] the reference's log-likelihoods in nats, all chosen sides first
    tokens: "Tensor"  # [2 B] of the continuations, all chosen sides first


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


@joint_stage
def dpo(config: DpoConfig, out: Path) -> Results:
    """Tune `config.model` on `config.pairs` into the folder `out`, a stock checkpoint.

    Raises:
        InputError: model or pairs cannot be read, or there are too few pairs to keep some apart.
        MismatchError: the pairs were encoded by another tokenizer than the model's.
    """
    from slam.model import SpeechLM
    from slam.packing import use_packed
    from slam.training import discard_checkpoints, gathered_weights, train

    speech_lm, units = SpeechLM.load(config.model), read_units(config.pairs)
    speech_lm.check_tokenizer(units.tokenizer, units.tokenizer_fingerprint, config.pairs)
    pairs = format_pairs(read_pairs(units), speech_lm.vocabulary, config.context)
    lm = speech_lm.lm
    use_packed(lm)
    training, held_out = _divide(pairs, config)

    task = preference_task(lm, training, held_out, config)
    results = train(lm, config, task, out)
    weights = gathered_weights(lm)
    if world.rank() == 0:
        speech_lm.save(out, weights)
    discard_checkpoints(out)
    return results | {
        "num_pairs": len(training.chosen),
        "num_held_out_pairs": len(held_out.chosen),
        "epochs": round(results["steps"] * config.batch_pairs / len(training.chosen), 2),
    }


def preference_task(
    lm: "PreTrainedModel", training: Preferences, held_out: Preferences, config: DpoConfig
) -> "Task[Compared]":
    """Learning to prefer chosen to rejected; the reference is `lm` as it is now, asked once.

    A row holds each pair's prompt once: the rejected side goes on from the prompt that stands before the
    chosen one. Only where rows must have one shape, for a compiled graph, both sides carry their prompt.
    """
    import torch

    from slam.devices import best_device
    from slam.packing import by_length, check_length, document_sums, packed, token_log_likelihoods
    from slam.training import Task, precision

    @torch.no_grad()
    def likelihoods(of: Preferences, poll: Callable[[], None] = lambda: None) -> np.ndarray:
        """`[2, B]` nats: chosen, rejected."""
        found = np.zeros((2, len(of.chosen)))
        check_length(lm, max(map(len, of.chosen + of.rejected)))
        training_mode = lm.training
        lm.train(mode=False)
        try:
            for numbers in by_length(of.costs().tolist(), config.micro_batch_tokens):
                poll()
                documents, skipped, shared = of.take(numbers).interleaved(prompts_once=True)
                batch = packed(documents, best_device(), shared=shared)
                sums = document_sums(token_log_likelihoods(lm, batch), batch.lengths, skipped)
                found[:, numbers] = sums.reshape(-1, 2).T.double().cpu().numpy()
        finally:
            lm.train(training_mode)
        return found

    with precision(config):  # as the policy's will be
        held_out_reference = likelihoods(held_out)
        reference = (
            np.zeros((2, len(training.chosen))) if config.loss in REFERENCE_FREE else likelihoods(training)
        )
    tokens = training.continuation_tokens()

    def row(numbers: "np.ndarray", fill: "Fill | None") -> "tuple[Packed, Compared]":
        some = training.take(numbers)
        documents, skipped, shared = some.interleaved(prompts_once=fill is None)
        return packed(documents, best_device(), fill, shared), Compared(
            skipped=tuple(skipped),
            reference=torch.tensor(reference[:, numbers].ravel(), dtype=torch.float32),
            tokens=torch.tensor(tokens[:, numbers].ravel(), dtype=torch.float32),
        )

    def loss(values: "Tensor", row: "Packed", compared: Compared) -> tuple["Tensor", dict[str, "Tensor"]]:
        pairs = document_sums(values, row.lengths, compared.skipped).reshape(-1, 2)
        sums = pairs.T.flatten()
        against, counts = compared.reference.to(sums.device), compared.tokens.to(sums.device)
        losses = pair_losses(sums, against, counts, config)
        chosen, rejected = sums.chunk(2)
        if config.sft_weight:
            losses = losses - config.sft_weight * chosen / counts.chunk(2)[0]
        figures = {"chosen_log_likelihood": chosen.sum(), "rejected_log_likelihood": rejected.sum()}
        better, worse = (sums - against).chunk(2)
        return losses.sum(), figures | {
            "reward_accuracy": (better > worse).float().sum(),
            "reward_margin": config.beta * (better - worse).sum(),
        }

    def validate(poll: Callable[[], None]) -> dict[str, float]:
        now = likelihoods(held_out, poll)
        sums, against, counts = (
            torch.tensor(array.ravel(), dtype=torch.float64)
            for array in (now, held_out_reference, held_out.continuation_tokens())
        )
        losses = pair_losses(sums, against, counts, config)
        ratios = (now - held_out_reference).mean(axis=1)
        return {
            "validation_loss": float(losses.mean()),
            "validation_preference_accuracy": float((now[0] > now[1]).mean()),
            "validation_chosen_log_ratio": float(ratios[0]),
            "validation_rejected_log_ratio": float(ratios[1]),
        }

    count = len(training.chosen)
    return Task(
        order=Batches(np.ones(count, np.int64), config.batch_pairs, config.seed),
        costs=training.costs(),
        terms=np.ones(count, np.int64),
        documents=2,
        longest=max(map(len, training.chosen + training.rejected)),
        row=row,
        loss=loss,
        validate=validate,
    )


def pair_losses(sums: "Tensor", reference: "Tensor", tokens: "Tensor", config: DpoConfig) -> "Tensor":
    """The loss of each pair, `[B]`, from `[2 B]` of the chosen sides and then the rejected ones."""
    from slam import losses

    chosen, rejected = sums.chunk(2)
    before = dict(zip(("reference_chosen", "reference_rejected"), reference.chunk(2), strict=True))
    counts = dict(zip(("chosen_tokens", "rejected_tokens"), tokens.chunk(2), strict=True))
    if config.loss == "ipo":
        return losses.ipo_loss(chosen, rejected, **before, **counts, beta=config.beta)
    if config.loss == "simpo":
        return losses.simpo_loss(chosen, rejected, **counts, beta=config.beta, margin=config.simpo_margin)
    if config.loss == "orpo":
        return losses.orpo_loss(chosen, rejected, **counts, beta=config.beta)
    return losses.dpo_loss(
        chosen, rejected, **before, beta=config.beta, label_smoothing=config.label_smoothing
    )


def _divide(pairs: Preferences, config: DpoConfig) -> tuple[Preferences, Preferences]:
    """Pairs to train on and pairs to validate on."""
    count = len(pairs.chosen)
    num_held_out = max(1, round(config.held_out_share * count))
    if num_held_out >= count:
        raise InputError(f"{config.pairs}: {count} pairs are too few to keep {num_held_out} apart")
    order = np.random.default_rng(config.seed).permutation(count)
    return pairs.take(order[num_held_out:]), pairs.take(order[:num_held_out])
