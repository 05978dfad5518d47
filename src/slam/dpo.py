"""A speech LM and preference pairs → a tuned speech LM, by direct preference optimisation.

The reference is the model as it was: its log-likelihoods are computed once, before the first step, so no
second model is held. A pair is formatted as the paper's recipe does: `<S>` and the prompt, then a
continuation and `<S>`; only the continuation counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from slam import world
from slam.budget import ScheduleName, TrainingConfig
from slam.errors import ConfigError
from slam.guard_rails import Limits, divergence, length_alone, pretraining_loss, repetition, watched
from slam.lineage import training_record
from slam.pairs import read_pairs
from slam.preferences import Preferences, comparable_pairs, divide, format_pairs
from slam.run import Results, joint_stage, source
from slam.shards import Batches, open_shards
from slam.units import read_units

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from slam.guard_rails import Look
    from slam.model import SpeechLM
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
    validation_shards: Path | None = source()
    """Token shards whose validation part watches what the model keeps of its pre-training."""
    samples: int = 32
    """Held-out prompts continued at each validation, to watch for repetition; 0 for none."""
    max_validation_loss_rise: float | None = None
    """How far the loss on the validation shards may rise, in nats a token, before tuning stops."""
    max_repetition_rise: float | None = None
    """How far the samples' mean auto-BLEU-2 may rise, a share, before tuning stops."""
    patience: int | None = None
    """Validations without a better held-out preference accuracy before tuning stops; the best is saved."""
    lora_rank: int | None = None
    """Rank of low-rank adapters, trained instead of the model's weights and then added to them."""
    lora_alpha: int = 32
    """With lora_rank, an adapter counts by this over its rank."""

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
        self._check_guard_rails()
        self._check_lora()

    def _check_guard_rails(self) -> None:
        limits = self.limits
        if self.samples < 0:
            raise ConfigError(f"samples = {self.samples}: must not be negative")
        if limits.max_validation_loss_rise is not None and self.validation_shards is None:
            raise ConfigError(
                "max_validation_loss_rise needs validation_shards: a folder that slam pack wrote"
            )
        if limits.max_repetition_rise is not None and not self.samples:
            raise ConfigError("max_repetition_rise needs samples: say how many")

    def _check_lora(self) -> None:
        if self.lora_rank is None:
            return
        if self.lora_rank < 1 or not self.lora_alpha > 0:
            raise ConfigError("lora_rank must be at least 1, lora_alpha more than 0")
        if self.optimizer == "muon":
            raise ConfigError('lora_rank goes with optimizer = "adamw" only')
        if self.embeddings_first:
            raise ConfigError("lora_rank trains no embeddings; leave embeddings_first out")

    @property
    def limits(self) -> Limits:
        """How much worse the model may get before tuning stops."""
        return Limits(
            max_validation_loss_rise=self.max_validation_loss_rise,
            max_repetition_rise=self.max_repetition_rise,
            patience=self.patience,
        )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What the loss needs of a row's pairs."""

    skipped: tuple[int, ...]  # [2 B] targets that belong to the prompts, pair by pair as in the row
    reference: "Tensor"  # [2 B] the reference's log-likelihoods in nats, all chosen sides first
    tokens: "Tensor"  # [2 B] of the continuations, all chosen sides first


@joint_stage
def dpo(config: DpoConfig, out: Path) -> Results:
    """Tune `config.model` on `config.pairs` into the folder `out`, a stock checkpoint.

    Raises:
        InputError: model or pairs cannot be read, or there are too few pairs to keep some apart.
        MismatchError: the pairs or the validation shards are of another tokenizer than the model's.
        MissingExtraError: LoRA is asked for and peft is not installed.
    """
    from slam.lora import add_adapters, merge
    from slam.model import SpeechLM
    from slam.packing import use_packed
    from slam.training import discard_checkpoints, gathered_weights, train

    if config.lora_rank is not None and world.size() > 1:
        raise ConfigError("lora_rank goes with one process only; leave torchrun out")
    speech_lm, units = SpeechLM.load(config.model), read_units(config.pairs)
    speech_lm.check_tokenizer(units.tokenizer, units.tokenizer_fingerprint, config.pairs)
    all_pairs = read_pairs(units)
    pairs = comparable_pairs(all_pairs, config.pairs)
    formatted = format_pairs(pairs, speech_lm.vocabulary, config.context)
    training, held_out = divide(formatted, config.held_out_share, config.seed, config.pairs)
    about: Results = {
        "num_pairs": len(training.chosen),
        "num_held_out_pairs": len(held_out.chosen),
        "num_equal_pairs": len(all_pairs) - len(pairs),
    } | length_alone(held_out, config.pairs)
    lm = speech_lm.lm
    use_packed(lm)
    num_parameters, adapted = lm.num_parameters(), None
    if config.lora_rank is not None:
        adapted = add_adapters(lm, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
        about["num_trained_parameters"] = lm.num_parameters(only_trainable=True)

    looks = _looks(speech_lm, held_out, config)
    task = preference_task(lm, training, held_out, config, looks=looks, limits=config.limits)
    found = train(lm, config, task, out) | {"num_parameters": num_parameters}
    if adapted is not None:
        merge(adapted)
    weights = gathered_weights(lm)
    about["epochs"] = round(found["steps"] * config.batch_pairs / len(training.chosen), 2)
    about |= {
        when: watched(found, word, len(held_out.chosen))
        for when, word in (("before", "initial"), ("after", "final"))
    }
    unwatched = {"stopped_by": None, "stopped_at_step": None, "kept_step": found["steps"]}
    results = unwatched | {k: v for k, v in found.items() if not k.startswith("initial_")} | about
    if world.rank() == 0:
        this = training_record("dpo", config, results)
        replace(speech_lm, training=(*speech_lm.training, this)).save(out, weights)
    discard_checkpoints(out)
    return results


def _looks(speech_lm: "SpeechLM", held_out: Preferences, config: DpoConfig) -> "list[Look]":
    """What is watched beside the preferences, as far as there is something to look at."""
    from slam.training import precision

    lm, shards = speech_lm.lm, None
    if config.validation_shards is not None:
        shards = open_shards(config.validation_shards, "validation").chunked(config.context)
        speech_lm.check_tokenizer(shards.tokenizer, shards.tokenizer_fingerprint, config.validation_shards)
    with precision(config):  # as the policy's will be
        looks = [divergence(lm, held_out, most_tokens=config.micro_batch_tokens)]
    if shards is not None and config.validation_shards is not None:
        looks.append(
            pretraining_loss(lm, shards, config.validation_shards, most_tokens=config.micro_batch_tokens)
        )
    if config.samples:
        prompts = held_out.take(range(min(config.samples, len(held_out.chosen))))
        looks.append(repetition(lm, speech_lm.vocabulary, prompts, context=config.context, seed=config.seed))
    return looks


def preference_task(
    lm: "PreTrainedModel",
    training: Preferences,
    held_out: Preferences,
    config: DpoConfig,
    *,
    looks: "Sequence[Look]" = (),
    limits: Limits = Limits(),  # noqa: B008 - frozen, and no limit at all
) -> "Task[Compared]":
    """Learning to prefer chosen to rejected; the reference is `lm` as it is now, asked once.

    Each validation also takes `looks`, and tuning stops beyond the `limits`.

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
        found = {
            "validation_loss": float(losses.mean()),
            "validation_preference_accuracy": float((now[0] > now[1]).mean()),
            "validation_chosen_log_ratio": float(ratios[0]),
            "validation_rejected_log_ratio": float(ratios[1]),
        }
        for look in looks:
            found |= look(poll)
        return found

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
        judge=None if limits == Limits() else limits.judge,
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
