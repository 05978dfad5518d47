"""Speech LMs and spoken prompts → spoken continuations.

Sampling defaults are the paper's (Table 6). Each continuation is seeded by its prompt's id, so it is the same
whichever others are made beside it.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slam.audio import write_audio
from slam.errors import ConfigError
from slam.progress import bar
from slam.prompts import PromptConfig, find_prompts
from slam.run import Results, source, stage, write_json_lines
from slam.tokenizers import BUILT_IN, load_tokenizer
from slam.units import Ids, Units, read_units
from slam.vocoders import Vocoder, load_vocoder

if TYPE_CHECKING:
    from slam.model import SpeechLM

CONTINUATIONS_FILE = "continuations.jsonl"


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(PromptConfig):
    """Settings of `slam generate`."""

    models: dict[str, Path] = source(required=True)
    """The speech LMs that speak: the name to report → folder."""
    max_new_units: int = 150
    """Most units in a continuation."""
    temperature: float = 0.8
    """Divides the scores before sampling; 0 takes the likeliest unit."""
    top_k: int = 25
    """Units among which one is sampled."""
    repetition_penalty: float = 1.1
    """Divides the scores of units already said (Keskar et al., 2019); 1 is off."""
    alone: bool = False
    """Also speak each continuation without its prompt, for scores of the continuation alone."""
    vocoder: str = "griffin-lim"
    """Who speaks the units: a built-in vocoder, or package.module:Name."""
    vocoder_from: Path | None = source()
    """Folder of its weights, for one that has any."""
    tokenizer: str | None = None
    """The tokenizer's name, needed only for one that is not built in."""
    seed: int = 0
    """Decides every draw."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.models:
            raise ConfigError("name at least one model")
        if self.max_new_units < 1 or self.top_k < 1:
            raise ConfigError("max_new_units and top_k must be at least 1")
        for name in self.models:
            # each model's sounds are named after it, beside those of the prompts
            if not re.fullmatch(r"[\w.+-]+", name) or name == "prompt":
                raise ConfigError(
                    f"models: {name!r} cannot name a sound file; use letters, digits and dashes"
                )
            if self.alone and f"{name}-alone" in self.models:
                raise ConfigError(f"models: {name}-alone would take the names of {name!r}'s sounds")
        if self.temperature < 0 or self.repetition_penalty <= 0:
            raise ConfigError("temperature must not be negative, repetition_penalty must be more than 0")


@stage
def generate(config: GenerateConfig, out: Path) -> Results:
    """Continue prompts with each model; write a wav for each prompt and continuation, and a manifest.

    Raises:
        InputError: a model or the prompts cannot be read.
        MismatchError: the prompts were encoded by another tokenizer than a model's.
    """
    from slam.model import SpeechLM

    units = read_units(config.prompts)
    named = config.tokenizer if config.tokenizer not in BUILT_IN else None
    tokenizer = load_tokenizer(units.tokenizer_folder, named=named)
    vocoder = load_vocoder(config.vocoder, tokenizer, config.vocoder_from)
    prompts = find_prompts(units, config)
    rows: list[dict[str, Any]] = []
    with bar("generating", len(prompts) * len(config.models)) as progress:
        for number, prompt in enumerate(prompts.taken):
            path = f"{number:03d}-prompt.wav"
            audio = vocoder.decode([prompt.units])[0]
            write_audio(out / path, audio)
            rows.append(
                {
                    "prompt": prompt.id,
                    "model": None,
                    "audio": path,
                    "num_units": len(prompt.units),
                    "seconds": audio.seconds,
                    "units": prompt.units.ids.tolist(),
                }
            )
        for model, folder in config.models.items():
            speech_lm = SpeechLM.load(folder)
            speech_lm.check_tokenizer(units.tokenizer, units.tokenizer_fingerprint, config.prompts)
            for number, prompt in enumerate(prompts.taken):
                ids, ended = continue_units(speech_lm, prompt.units, prompt.id, config)
                rows.append(
                    {"prompt": prompt.id, "model": model, "prompt_seconds": prompt.seconds}
                    | _spoken(
                        vocoder, prompt.units, ids, out / f"{number:03d}-{model}.wav", alone=config.alone
                    )
                    | {"num_units": len(ids), "ended": ended, "units": ids.tolist()}
                )
                progress.advance()
    write_json_lines(out / CONTINUATIONS_FILE, rows)
    made = [row for row in rows if row["model"] is not None]
    return {
        "num_prompts": len(prompts),
        "num_short_prompts": prompts.num_short,
        "num_prompts_without_words": len(prompts.without_words),
        "prompts_without_words": prompts.without_words[:20],
        "num_continuations": len(made),
        "num_ended_by_the_model": sum(row["ended"] for row in made),
        "sample_rate": vocoder.sample_rate,
        "tokenizer": units.tokenizer,
        "tokenizer_fingerprint": units.tokenizer_fingerprint,
    }


def _spoken(vocoder: Vocoder, prompt: Units, ids: Ids, path: Path, *, alone: bool) -> dict[str, Any]:
    """Speak prompt and continuation into the file `path`, the latter also alone; what a row says of it."""
    whole = vocoder.decode([Units(np.concatenate([prompt.ids, ids]), None, prompt.frame_rate)])[0]
    write_audio(path, whole)
    row = {"audio": path.name, "seconds": whole.seconds}
    if not alone:
        return row
    if not len(ids):  # a model that ended at once said nothing, and no sound file holds nothing
        return row | {"alone": None, "alone_seconds": 0.0}
    rest = vocoder.decode([Units(ids, None, prompt.frame_rate)])[0]
    path = path.with_name(f"{path.stem}-alone.wav")
    write_audio(path, rest)
    return row | {"alone": path.name, "alone_seconds": rest.seconds}


def continue_units(
    speech_lm: "SpeechLM", prompt: Units, name: str, config: GenerateConfig
) -> tuple[Ids, bool]:
    """Sample a continuation of `prompt`.

    Returns:
        `(unit ids [N], whether the model ended it)`.
    """
    import torch

    from slam.packing import check_length

    vocabulary = speech_lm.vocabulary
    tokens = vocabulary.document(prompt.ids)[:-1].astype(np.int64)
    check_length(speech_lm.lm, len(tokens) + config.max_new_units)
    seed = int.from_bytes(hashlib.sha256(f"{config.seed} {name}".encode()).digest()[:4])
    torch.manual_seed(seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if config.temperature:
        sampling = {"do_sample": True, "temperature": config.temperature, "top_k": config.top_k}
    inputs = torch.from_numpy(tokens)[None].to(speech_lm.lm.device)
    speech_lm.lm.train(mode=False)
    generated = speech_lm.lm.generate(  # type: ignore[operator]
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=config.max_new_units,
        repetition_penalty=config.repetition_penalty,
        suppress_tokens=[vocabulary.pad],
        pad_token_id=vocabulary.pad,
        eos_token_id=vocabulary.eos,
        **sampling,
    )[0, len(tokens) :]
    made = generated.cpu().numpy()
    return vocabulary.ids(made), bool(len(made) and made[-1] == vocabulary.eos)
