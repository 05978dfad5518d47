"""Token shards and a text LM, or none → a language model of those tokens.

With `initialization = "twist"` (Hassid et al., 2023; the paper's section 4) the base's body is kept and its
vocabulary replaced; `"random"` is the control. Without a base, a small Qwen2 is trained from nothing: so is
the text LM that the demo warm-starts from.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slam.architecture import Architecture
from slam.budget import TrainingConfig
from slam.errors import ConfigError
from slam.run import Results, source, stage
from slam.shards import split

if TYPE_CHECKING:
    from torch import Tensor

    from slam.model import Packed


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """Settings of `slam pretrain`; defaults are the paper's (Table 4) where it has one."""

    shards: Path = source(required=True)
    """Token shards that `slam pack` wrote."""
    base: Path | None = source()
    """Folder of a causal LM to start from."""
    hub_base: str | None = None
    """Hub name of a causal LM to start from, instead of a folder."""
    initialization: Literal["twist", "random"] = "twist"
    """Keep the base's body, or only its architecture."""
    architecture: Architecture = field(default_factory=Architecture)
    """Sizes of the model where there is no base."""
    context: int = 1024
    """Most tokens in a document; longer ones are cut, nothing is lost."""
    batch_tokens: int = 131_072
    """Tokens in an update: 128 documents of 1024."""
    rope_theta: float | None = None
    """Base of the rotary frequencies; the base's own if not given (the paper: 10,000)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base is not None and self.hub_base is not None:
            raise ConfigError("give base (a folder) or hub_base (a name), not both")
        if self.context < 2 or self.batch_tokens < 1:  # noqa: PLR2004 - one token predicts nothing
            raise ConfigError("context must be at least 2, batch_tokens at least 1")


@stage
def pretrain(config: PretrainConfig, out: Path) -> Results:
    """Train a language model of `config.shards` into the folder `out`, a stock checkpoint.

    Raises:
        InputError: shards or base cannot be read, or the loss is not finite.
        ConfigError: the base does not fit the settings.
    """
    from slam.model import SpeechLM, log_likelihoods, new_lm, packed, token_log_likelihoods, use_packed
    from slam.shards import Batches, open_shards
    from slam.training import Task, discard_checkpoints, train

    shards = open_shards(config.shards, "train")
    documents = shards.chunked(config.context)
    validation = open_shards(config.shards, "validation").chunked(config.context)
    lm = new_lm(
        shards.vocabulary,
        base=str(config.base) if config.base is not None else config.hub_base,
        initialization=config.initialization,
        architecture=config.architecture,
        context=config.context,
        rope_theta=config.rope_theta,
        seed=config.seed,
    )
    use_packed(lm)
    order = Batches(documents.lengths, config.batch_tokens, config.seed)

    def batches(step: int) -> "Iterator[Sequence[Packed]]":
        for numbers in order.starting_at(step):
            groups = split(documents.lengths[numbers], config.micro_batch_tokens)
            yield [packed([documents[n] for n in numbers[group]], lm.device) for group in groups]

    def loss(micro: "Packed") -> "tuple[Tensor, dict[str, Tensor]]":
        return -token_log_likelihoods(lm, micro).sum(), {}

    def validate() -> dict[str, float]:
        sums, counts = log_likelihoods(
            lm, [validation[n] for n in range(len(validation))], most_tokens=config.micro_batch_tokens
        )
        return {"validation_loss": float(-sums.sum() / counts.sum())}

    results = train(lm, config, Task(batches=batches, loss=loss, validate=validate), out)
    SpeechLM(lm, shards.vocabulary, shards.tokenizer, shards.tokenizer_fingerprint).save(out)
    text_tokenizer = config.shards / "tokenizer.json"
    if text_tokenizer.is_file():
        shutil.copyfile(text_tokenizer, out / "tokenizer.json")
    discard_checkpoints(out)
    return results | {"epochs": round(results["tokens"] / len(shards.tokens), 2)}
