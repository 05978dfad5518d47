"""A speech LM under preference tuning → what else the tuning does to it, and whether it should go on.

Preferences can be won at a price: the model forgets what it was trained on, or says one thing over and over
(the paper, section 7). Each function here looks at one such price; none of them changes the weights or the
random state of the training, so a training that is watched equals one that is not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slam.errors import ConfigError, InputError
from slam.metrics.auto_bleu import auto_bleu
from slam.metrics.preference import preferences, wilson_interval
from slam.preferences import Preferences
from slam.progress import console
from slam.run import Results
from slam.shards import TokenShards
from slam.units import Ids, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from slam.packing import Packed
    from slam.training import Verdict

Look = Callable[[Callable[[], None]], dict[str, float]]
"""A function that is called now and then, polls the function it is given, and finds figures."""

_CHANCE = 0.5
_SAMPLED_UNITS = 100  # in a continuation
_SAMPLED_AT_ONCE = 64
_TEMPERATURE, _TOP_K = 0.8, 25  # the paper's (Table 6)
_MOST_POSITIONS = 8192  # whose whole distributions are kept
_MOST_BYTES = 64 * 2**20  # that they take


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much worse a model may get before tuning stops; None is no limit."""

    max_validation_loss_rise: float | None = None  # nats a token over the model as it was
    max_repetition_rise: float | None = None  # share of repeated bigrams over the model as it was
    patience: int | None = None  # validations without a better preference accuracy

    def __post_init__(self) -> None:
        for name, least in (("max_validation_loss_rise", 0), ("max_repetition_rise", 0), ("patience", 1)):
            limit = getattr(self, name)
            if limit is not None and not limit >= least:
                raise ConfigError(f"{name} = {limit}: must be at least {least}; leave it out for no limit")

    def judge(self, found: Sequence[Mapping[str, float]]) -> "Verdict":
        """Whether to go on, and whether the weights of now are worth keeping.

        With `patience` only those of the best preference accuracy so far are; else all within the limits.

        Args:
            found: figures of all validations, the one before any update first.
        """
        from slam.training import Verdict

        first, now = found[0], found[-1]
        for name, figure, most in (
            ("max_validation_loss_rise", "validation_pretraining_loss", self.max_validation_loss_rise),
            ("max_repetition_rise", "validation_auto_bleu", self.max_repetition_rise),
        ):
            if most is not None and now[figure] - first[figure] > most:
                return Verdict(stopped_by=name, keep=False)
        if self.patience is None:
            return Verdict(stopped_by=None, keep=True)
        accuracies = [row["validation_preference_accuracy"] for row in found]
        waited = len(found) - 1 - accuracies.index(max(accuracies))
        return Verdict(stopped_by="patience" if waited >= self.patience else None, keep=not waited)


def pretraining_loss(lm: "PreTrainedModel", shards: TokenShards, where: Path, *, most_tokens: int) -> Look:
    """Look at the loss on speech that was never tuned on, in nats a token.

    Args:
        lm: uses the packed attention.
        shards: held-out documents.
        where: the folder they are from, for the line that refuses them.
        most_tokens: in one forward pass.

    Raises:
        InputError: there are tokens that the vocabulary does not have.
    """
    from slam.packing import log_likelihoods

    largest = int(shards.tokens.max())
    if largest >= lm.config.vocab_size:
        raise InputError(f"{where}: holds token {largest}, but the model has {lm.config.vocab_size}")
    documents = [shards[number] for number in range(len(shards))]

    def look(poll: Callable[[], None]) -> dict[str, float]:
        sums, counts = log_likelihoods(lm, documents, most_tokens=most_tokens, poll=poll)
        return {"validation_pretraining_loss": float(-sums.sum() / counts.sum())}

    return look


def repetition(
    lm: "PreTrainedModel", vocabulary: Vocabulary, held_out: Preferences, *, context: int, seed: int
) -> Look:
    """Look at the mean auto-BLEU-2 of continuations of prompts, sampled with the same draws each time.

    All continuations are of one length, 100 units or half the context if that is less, for longer ones
    repeat more. There is no repetition penalty, which would hide what is looked for.

    Args:
        lm: uses the packed attention.
        vocabulary: that it speaks.
        held_out: pairs whose prompts are continued, cut from their left where the context asks for it.
        context: tokens in prompt and continuation, at most.
        seed: of the draws.
    """
    context = min(context, getattr(lm.config, "max_position_embeddings", None) or context)
    num_units = min(_SAMPLED_UNITS, context // 2)
    room = context - 1 - num_units
    pairs = zip(held_out.chosen, held_out.skipped, strict=True)
    prompts = [np.append(document[:1], document[1 : prompt + 1][-room:]) for document, prompt in pairs]

    def look(poll: Callable[[], None]) -> dict[str, float]:
        made: list[Ids] = []
        for begin in range(0, len(prompts), _SAMPLED_AT_ONCE):
            poll()
            some = prompts[begin : begin + _SAMPLED_AT_ONCE]
            made += sample(lm, vocabulary, some, num_units=num_units, seed=seed + begin)
        return {"validation_auto_bleu": float(np.mean([auto_bleu(units, 2) for units in made]))}

    return look


def sample(
    lm: "PreTrainedModel", vocabulary: Vocabulary, prompts: Sequence[Ids], *, num_units: int, seed: int
) -> list[Ids]:
    """Continue each prompt by `num_units` units, as the paper samples; none ends by itself.

    Args:
        lm: uses the packed attention, and does so again afterwards.
        vocabulary: that it speaks.
        prompts: tokens, `<S>` first.
        num_units: in each continuation.
        seed: of the draws; the caller's random state stays as it is.

    Returns:
        Unit ids of the continuations, `[num_units]` each.
    """
    import torch
    from transformers import GenerationConfig

    from slam.attention import PACKED

    length = max(map(len, prompts))
    tokens = np.full((len(prompts), length), vocabulary.pad, np.int64)
    attended = np.zeros_like(tokens)
    for number, prompt in enumerate(prompts):
        tokens[number, length - len(prompt) :] = prompt
        attended[number, length - len(prompt) :] = 1
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=_TEMPERATURE,
        top_k=_TOP_K,
        top_p=1.0,
        repetition_penalty=1.0,
        max_new_tokens=num_units,
        suppress_tokens=sorted({vocabulary.pad, vocabulary.bos, vocabulary.eos}),
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
    )
    training, device = lm.training, lm.device
    accelerators = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    lm.train(mode=False)
    lm.set_attn_implementation("sdpa")
    try:
        with torch.random.fork_rng(accelerators, device_type=kind):
            torch.manual_seed(seed)
            made = lm.generate(  # type: ignore[operator]
                input_ids=torch.from_numpy(tokens).to(device),
                attention_mask=torch.from_numpy(attended).to(device),
                generation_config=settings,
            )
    finally:
        lm.set_attn_implementation(PACKED)
        lm.train(training)
    return [vocabulary.ids(row) for row in made[:, length:].cpu().numpy()]


def divergence(lm: "PreTrainedModel", held_out: Preferences, *, most_tokens: int) -> Look:
    """Look at how far the model is from what it is now, by its whole distributions of the next token.

    They are taken at each token of both continuations of the first held-out pairs: as many pairs as have 8192
    such tokens, or fewer, so that those of now, kept in fp32 in the CPU's memory, take at most 64 MiB.

    Args:
        lm: uses the packed attention.
        held_out: pairs; at least one is used.
        most_tokens: in one forward pass.

    Returns:
        What finds two means over those tokens in nats: `validation_kl` of the model from what it was,
        KL(now‖then), and `validation_reverse_kl`, KL(then‖now).
    """
    import torch

    from slam.packing import by_length, logits, packed

    most = min(_MOST_POSITIONS, _MOST_BYTES // (4 * lm.config.vocab_size))
    totals = np.cumsum(held_out.continuation_tokens().sum(axis=0))
    some = held_out.take(range(max(1, int(np.searchsorted(totals, most, side="right")))))
    groups = list(by_length(some.costs().tolist(), most_tokens))

    @torch.no_grad()
    def distributions(numbers: Sequence[int]) -> "Tensor":
        """Log-probabilities `[positions, V]` of these pairs' continuations, fp32."""
        documents, skipped, shared = some.take(numbers).interleaved(prompts_once=True)
        row = packed(documents, lm.device, shared=shared)
        training = lm.training
        lm.train(mode=False)
        try:
            scores = logits(lm, row)[_counted(row, skipped)]
        finally:
            lm.train(training)
        return torch.log_softmax(scores.float(), dim=-1)

    then = [distributions(numbers).cpu() for numbers in groups]

    def look(poll: Callable[[], None]) -> dict[str, float]:
        forward = reverse = 0.0
        for numbers, before in zip(groups, then, strict=True):
            poll()
            now = distributions(numbers)
            apart = now - before.to(now.device)
            forward += float((now.exp() * apart).sum(dim=-1).cpu().double().sum())
            reverse -= float(((now - apart).exp() * apart).sum(dim=-1).cpu().double().sum())
        count = sum(map(len, then))
        return {"validation_kl": forward / count, "validation_reverse_kl": reverse / count}

    return look


def _counted(row: "Packed", skipped: Sequence[int]) -> "Tensor":
    """The places in a row that predict a token of a continuation, `[positions]`."""
    import torch

    ends = np.cumsum(row.lengths)
    parts = [
        np.arange(end - length + prompt, end - 1)
        for end, length, prompt in zip(ends, row.lengths, skipped, strict=True)
    ]
    return torch.from_numpy(np.concatenate(parts)).to(row.tokens.device)


def watched(results: Results, when: str, num_held_out: int) -> Results:
    """What the `initial` or the `final` validation found, by plain names, and the accuracy's interval."""
    begin = f"{when}_validation_"
    found = {name.removeprefix(begin): value for name, value in results.items() if name.startswith(begin)}
    interval = wilson_interval(found["preference_accuracy"], num_held_out)
    return found | {"preference_accuracy_interval": interval}


def length_alone(held_out: Preferences, where: Path) -> Results:
    """How often the shorter side of a held-out pair is the better one, ties one half; a word if it tells."""
    chosen, rejected = held_out.continuation_tokens().astype(np.float64)
    accuracy = float(preferences(-chosen, -rejected).mean())
    low, high = wilson_interval(accuracy, len(chosen))
    if not low <= _CHANCE <= high:
        shorter, share = ("shorter", accuracy) if accuracy > _CHANCE else ("longer", 1 - accuracy)
        console.print(
            f"{where}: the {shorter} side is the better one in {share:.0%} of {len(chosen)} held-out pairs "
            f"(95 % interval of the shorter: {low:.0%} to {high:.0%}); a model could win by length alone",
            style="yellow",
            soft_wrap=True,
        )
    return {"held_out_length_accuracy": accuracy, "held_out_length_interval": (low, high)}
