"""A speech LM of another toolkit → a stock checkpoint of ours: the same weights, the same logits.

The reference toolkit keeps its models in a class of its own, which needs its code, and the base model's
config from the hub, to be loaded. All that is needed stands in the checkpoint: nothing else is downloaded,
and what asks for code to be run is passed over and named.
"""

from dataclasses import dataclass
from pathlib import Path

from slam import hub
from slam.errors import ConfigError
from slam.lineage import training_record
from slam.origins import Origin, check_named, named_origin, origin_in
from slam.run import Results, source, stage
from slam.weight_files import read_weights


@dataclass(frozen=True, kw_only=True)
class ImportModelConfig:
    """Settings of `slam import-model`."""

    model: Path | None = source()
    """Folder of the model: slamkit's, TWIST's, or a stock causal LM over units."""
    hub_model: str | None = None
    """Name of the model on the hub, owner/name, instead of a folder."""
    revision: str | None = None
    """Branch, tag or commit of hub_model, if not its newest."""
    tokenizer_from: Path | None = source()
    """A folder of units, or one with a tokenizer, of the tokenizer that the model speaks."""
    tokenizer: str | None = None
    """Or a name for that tokenizer; with num_units and frame_rate, as in slam import-units."""
    num_units: int | None = None
    """How many units that tokenizer has; needed with tokenizer."""
    frame_rate: float | None = None
    """Its frames a second, before duplicates are merged; needed with tokenizer, or else fingerprint."""
    fingerprint: str | None = None
    """Its fingerprint, where you know it, instead of frame_rate."""
    padding: int | None = None
    """Token of the model that stands for nothing, if its config does not say so."""
    boundary: int | None = None
    """Token of the model that opens and closes an utterance, if its config does not say so."""
    read_pickles: bool = False
    """Take pytorch_model.bin where there is no safetensors file: its tensors alone, nothing in it is run."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.hub_model is None):
            raise ConfigError("give model (a folder) or hub_model (a name on the hub), one of them")
        if self.revision is not None and self.hub_model is None:
            raise ConfigError("revision goes with hub_model")
        last = "frame_rate" if self.fingerprint is None else "fingerprint"
        if self.fingerprint is not None and self.frame_rate is not None:
            raise ConfigError("give frame_rate or fingerprint, not both")
        check_named(
            self.tokenizer_from,
            {"tokenizer": self.tokenizer, "num_units": self.num_units, last: getattr(self, last)},
            "the model does not say which tokenizer it speaks",
        )

    @property
    def origin(self) -> Origin:
        """The tokenizer that the model speaks."""
        if self.tokenizer_from is not None:
            return origin_in(self.tokenizer_from)
        name, num_units = str(self.tokenizer), self.num_units or 0
        if self.fingerprint is not None:
            return Origin(name, self.fingerprint, num_units, 0.0)
        return named_origin(name, num_units, self.frame_rate or 0.0)


@stage
def import_model(config: ImportModelConfig, out: Path) -> Results:
    """Convert the model into the folder `out`, a stock checkpoint in fp32.

    Raises:
        InputError: the model cannot be found or read, or it is not what its config says.
        MismatchError: `tokenizer_from` was changed.
    """
    origin, folder = config.origin, _folder(config)

    from slam.foreign_models import built_foreign, order_of, read_foreign, reorder
    from slam.model import SpeechLM

    where = config.model or Path(str(config.hub_model))
    foreign = read_foreign(folder)
    weights = read_weights(folder, pickles=config.read_pickles)
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()})
    lm = built_foreign(foreign, weights, where)
    del weights
    num_rows = len(lm.get_input_embeddings().weight)  # type: ignore[arg-type]
    order = order_of(
        foreign, num_rows, origin.num_units, where, padding=config.padding, boundary=config.boundary
    )
    reorder(lm, order)
    results: Results = {
        "layout": foreign.layout,
        "architecture": type(lm).__name__,
        "base": foreign.base,
        "num_parameters": lm.num_parameters(),
        "kept_as": dtypes,
        "tokenizer": origin.name,
        "tokenizer_fingerprint": origin.fingerprint,
        "num_units": origin.num_units,
        "order": "ours" if order.is_ours else "mapped",
        "num_tokens_left_out": order.num_left_out,
        "not_run": list(foreign.ignored),
    }
    if config.hub_model is not None:
        results["commit"] = folder.name
    record = training_record("import-model", config, results)
    SpeechLM(lm, order.vocabulary, origin.name, origin.fingerprint, (record,)).save(out)
    return results


def _folder(config: ImportModelConfig) -> Path:
    if config.model is not None:
        return config.model
    patterns = [*hub.PLAIN_FILES, *(hub.PICKLES if config.read_pickles else ())]
    return hub.fetched(str(config.hub_model), config.revision, patterns)
