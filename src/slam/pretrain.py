"""Token shards and a text LM, or none → a language model of those tokens.

With `initialization = "twist"` (Hassid et al., 2023; the paper's section 4) the base's body is kept and its
vocabulary replaced; `"random"` is the control. Without a base, a small Qwen2 is trained from nothing: so is
the text LM that the demo warm-starts from.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slam import world
from slam.architecture import Architecture
from slam.budget import TrainingConfig
from slam.errors import ConfigError, InputError, MismatchError
from slam.lineage import training_record
from slam.run import Results, joint_stage, read_json, source
from slam.shards import TEXT_TOKENIZER, Batches, TokenShards, open_shards
from slam.watched_benchmarks import benchmark_accuracy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor
    from transformers import PreTrainedModel

    from slam.guard_rails import Look
    from slam.packing import Fill, Packed
    from slam.training import Task
    from slam.units import Ids, Vocabulary


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """Settings of `slam pretrain`; defaults as in `TrainingConfig`."""

    shards: Path = source(required=True)
    """Token shards that `slam pack` wrote."""
    base: Path | None = source()
    """Folder of a causal LM to start from."""
    hub_base: str | None = None
    """Hub name of a causal LM to start from, instead of a folder."""
    initialization: Literal["twist", "random"] = "twist"
    """Keep the base's body, or only its architecture."""
    embeddings: Literal["moments", "rows"] = "moments"
    """With twist, the units' embeddings: drawn with the text's mean and spread, or the text's first rows."""
    architecture: Architecture = field(default_factory=Architecture)
    """Sizes of the model where there is no base."""
    context: int = 1024
    """Most tokens in a document; longer ones are cut, nothing is lost."""
    batch_tokens: int = 131_072
    """Tokens in an update: 128 documents of 1024."""
    rope_theta: float | None = None
    """Base of the rotary frequencies; the base's own if not given (the paper: 10,000)."""
    benchmarks: tuple[Path, ...] = source(())
    """Folders of encoded pairs that are scored at each validation."""
    benchmark_pairs: int = 200
    """How many pairs of each of them, drawn by the seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base is not None and self.hub_base is not None:
            raise ConfigError("give base (a folder) or hub_base (a name), not both")
        if self.context < 2 or self.batch_tokens < 1:  # noqa: PLR2004 - one token predicts nothing
            raise ConfigError("context must be at least 2, batch_tokens at least 1")
        if self.benchmark_pairs < 1:
            raise ConfigError(f"benchmark_pairs = {self.benchmark_pairs}: must be at least 1")


@joint_stage
def pretrain(config: PretrainConfig, out: Path) -> Results:
    """Train a language model of `config.shards` into the folder `out`, a stock checkpoint.

    Raises:
        InputError: shards or base cannot be read, or the loss is not finite.
        ConfigError: the base does not fit the settings.
        MismatchError: the base is a speech LM of another tokenizer than the shards'.
    """
    from slam.model import SpeechLM, new_lm
    from slam.packing import use_packed
    from slam.training import discard_checkpoints, gathered_weights, train

    shards = open_shards(config.shards, "train")
    documents = shards.chunked(config.context)
    validation = open_shards(config.shards, "validation").chunked(config.context)
    lm = new_lm(
        shards.vocabulary,
        base=str(config.base) if config.base is not None else config.hub_base,
        initialization=config.initialization,
        embeddings=_embeddings(config, shards),
        architecture=config.architecture,
        context=config.context,
        rope_theta=config.rope_theta,
        seed=config.seed,
    )
    use_packed(lm)
    before = _training_of(config)
    speech_lm = SpeechLM(lm, shards.vocabulary, shards.tokenizer, shards.tokenizer_fingerprint, before)
    looks = [
        benchmark_accuracy(
            speech_lm,
            config.benchmarks,
            num_pairs=config.benchmark_pairs,
            seed=config.seed,
            most_tokens=config.micro_batch_tokens,
        )
    ]
    task = next_token_task(lm, documents, validation, config, looks=looks if config.benchmarks else [])
    results = train(lm, config, task, out)
    results |= {"epochs": round(results["tokens"] / len(shards.tokens), 2)}
    weights = gathered_weights(lm)
    if world.rank() == 0:
        this = training_record("pretrain", config, results)
        replace(speech_lm, training=(*before, this)).save(out, weights)
        text_tokenizer = config.shards / "tokenizer.json"
        if text_tokenizer.is_file():
            shutil.copyfile(text_tokenizer, out / "tokenizer.json")
    discard_checkpoints(out)
    return results


def _training_of(config: PretrainConfig) -> tuple[Mapping[str, Any], ...]:
    """The runs that made the base, where slam made it and its weights are kept."""
    from slam.model import ABOUT_FILE, read_about

    if config.base is None or config.initialization == "random" or not (config.base / ABOUT_FILE).is_file():
        return ()
    return read_about(config.base).training


def _embeddings(config: PretrainConfig, shards: TokenShards) -> 'Literal["moments", "rows"] | None':
    """How the vocabulary's embeddings start; None where the base speaks these very units already.

    Raises:
        MismatchError: the base speaks other units: a text LM is no error, for TWIST starts from one.
    """
    from slam.model import ABOUT_FILE

    if config.base is None or config.initialization == "random" or not (config.base / ABOUT_FILE).is_file():
        return config.embeddings
    about = read_json(config.base / ABOUT_FILE)
    if about["tokenizer_fingerprint"] == shards.tokenizer_fingerprint:
        return None
    if about["tokenizer"].startswith(TEXT_TOKENIZER):
        return config.embeddings
    raise MismatchError(
        f"{config.base}: speaks units of {about['tokenizer']} {about['tokenizer_fingerprint']}, "
        f"{config.shards} holds {shards.tokenizer} {shards.tokenizer_fingerprint}; "
        "encode with the base's tokenizer"
    )


def next_token_task(
    lm: "PreTrainedModel",
    training: TokenShards,
    validation: TokenShards,
    config: PretrainConfig,
    *,
    looks: "Sequence[Look]" = (),
) -> "Task[None]":
    """Next-token prediction inside documents, each batch at most `config.batch_tokens` of them.

    Each validation also takes `looks`.
    """
    from slam.devices import best_device
    from slam.packing import log_likelihoods, packed
    from slam.training import Task

    def row(numbers: "npt.NDArray[np.int64]", fill: "Fill | None") -> "tuple[Packed, None]":
        some = [training[int(number)] for number in numbers]
        check_ids(some, training.vocabulary, config.shards)
        return packed(some, best_device(), fill), None

    def loss(values: "Tensor", _: "Packed", __: None) -> "tuple[Tensor, dict[str, Tensor]]":
        return -values.sum(), {}

    def validate(poll: "Callable[[], None]") -> dict[str, float]:
        held_out = [validation[number] for number in range(len(validation))]
        check_ids(held_out, training.vocabulary, config.shards)
        sums, counts = log_likelihoods(lm, held_out, most_tokens=config.micro_batch_tokens, poll=poll)
        found = {"validation_loss": float(-sums.sum() / counts.sum())}
        for look in looks:
            found |= look(poll)
        return found

    lengths = training.lengths
    return Task(
        order=Batches(lengths, config.batch_tokens, config.seed),
        costs=lengths,
        terms=lengths - 1,
        longest=min(config.context, int(lengths.max())),
        row=row,
        loss=loss,
        validate=validate,
    )


def check_ids(documents: "Sequence[Ids]", vocabulary: "Vocabulary", where: Path) -> None:
    """Refuse tokens that the vocabulary does not have, before they index past the embeddings.

    Raises:
        InputError: there is one; the line names it.
    """
    largest = max((int(document.max()) for document in documents), default=0)
    if largest >= vocabulary.size:
        raise InputError(
            f"{where}: holds token {largest}, but its vocabulary has {vocabulary.size}; pack it again"
        )
