"""A speech LM → a folder to hand on: for transformers, vLLM, llama.cpp (GGUF) or ONNX, with its model card.

What is trained here is a stock checkpoint already; this gives it another type or form, and a card written
from its runs and scores. Each form is read back and compared before the run counts as done.
"""

import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slam.exports import BUILT_IN, DtypeName
from slam.model_card import CARD_FILE, CardFacts, model_card
from slam.run import Results, atomic_write, source, stage


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of `slam export`."""

    model: Path = source(required=True)
    """The speech LM to hand on."""
    to: Literal["transformers", "vllm", "gguf", "onnx"] = "transformers"
    """The form."""
    dtype: DtypeName = "fp32"
    """The type of the weights: trained ones are fp32."""
    scores: Path | None = source()
    """Folder that `slam evaluate` wrote on this model; its scores go into the card."""
    title: str | None = None
    """Headline of the card; the model's folder if not given."""
    licence: str | None = None
    """As the hub names it: mit, cc-by-4.0 …; the card says "not stated" if not given."""
    datasets: tuple[str, ...] = ()
    """Names on the hub of the data it was trained on, for the card."""
    base_model: str | None = None
    """Name on the hub of the text LM it started from, for the card, if its runs do not say so."""

    @property
    def facts(self) -> CardFacts:
        """For the card."""
        return CardFacts(
            title=self.title or self.model.resolve().name,
            licence=self.licence,
            datasets=self.datasets,
            base_model=self.base_model,
            form=self.to,
        )


@stage
def export(config: ExportConfig, out: Path) -> Results:
    """Write `config.model` into the folder `out` in another form, and its card.

    Raises:
        InputError: the model cannot be read, cannot take that form, or what was read back differs.
        ConfigError: the form has no such type.
        MismatchError: the scores are of other models.
        MissingExtraError: the form needs a package that is not installed.
    """
    from slam.model import ABOUT_FILE, SpeechLM, refuse_text

    speech_lm = SpeechLM.load(config.model)
    refuse_text(speech_lm.tokenizer, config.model)
    speech_lm.lm.to("cpu")  # type: ignore[arg-type]
    card = model_card(config.model, config.facts, config.scores)
    checked = pkgutil.resolve_name(BUILT_IN[config.to])(speech_lm, out, config.dtype)
    for name in () if config.to in ("transformers", "vllm") else ("config.json", ABOUT_FILE):
        atomic_write(out / name, (config.model / name).read_bytes())
    atomic_write(out / CARD_FILE, card)
    weights = [path for path in out.iterdir() if path.suffix in (".safetensors", ".gguf", ".onnx", ".data")]
    return {
        "to": config.to,
        "dtype": config.dtype,
        "weight_bytes": sum(path.stat().st_size for path in weights),
        "checked": checked,
    }
