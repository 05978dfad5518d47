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
from slam.errors import ConfigError, InputError
from slam.pairs import PAIRS_FILE, read_pairs
from slam.progress import bar
from slam.run import Results, source, stage, write_json_lines
from slam.tokenizers import BUILT_IN, load_tokenizer
from slam.units import Units, UnitsFolder, read_units
from slam.vocoders import load_vocoder

if TYPE_CHECKING:
    from slam.model import SpeechLM

CONTINUATIONS_FILE = "continuations.jsonl"


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Settings of `slam generate`."""

    models: dict[str, Path] = source(required=True)
    """The speech LMs that speak: the name to report → folder."""
    prompts: Path = source(required=True)
    """A folder of units: the prompts of its pairs, or its utterances where it has none."""
    num_prompts: int = 8
    """How many prompts, evenly spaced over the folder."""
    prompt_seconds: float | None = 3.0
    """Length to which a prompt is cut, in seconds; 0 keeps all of it."""
    max_new_units: int = 150
    """Most units in a continuation."""
    temperature: float = 0.8
    """Divides the scores before sampling; 0 takes the likeliest unit."""
    top_k: int = 25
    """Units among which one is sampled."""
    repetition_penalty: float = 1.1
    """Divides the scores of units already said (Keskar et al., 2019); 1 is off."""
    vocoder: str = "griffin-lim"
    """Who speaks the units: a built-in vocoder, or package.module:Name."""
    vocoder_from: Path | None = source()
    """Folder of its weights, for one that has any."""
    tokenizer: str | None = None
    """The tokenizer's name, needed only for one that is not built in."""
    seed: int = 0
    """Decides every draw."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("name at least one model")
        if self.num_prompts < 1 or self.max_new_units < 1 or self.top_k < 1:
            raise ConfigError("num_prompts, max_new_units and top_k must be at least 1")
        if self.prompt_seconds is not None and self.prompt_seconds < 0:
            raise ConfigError(f"prompt_seconds = {self.prompt_seconds}: must not be negative")
        for name in self.models:
            # each model's sounds are named after it, beside those of the prompts
            if not re.fullmatch(r"[\w.+-]+", name) or name == "prompt":
                raise ConfigError(
                    f"models: {name!r} cannot name a sound file; use letters, digits and dashes"
                )
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
        for number, (name, prompt) in enumerate(prompts):
            path = f"{number:03d}-prompt.wav"
            write_audio(out / path, vocoder.decode([prompt])[0])
            rows.append({"prompt": name, "model": None, "audio": path, "num_units": len(prompt)})
        for model, folder in config.models.items():
            speech_lm = SpeechLM.load(folder)
            speech_lm.check_tokenizer(units.tokenizer, units.tokenizer_fingerprint, config.prompts)
            for number, (name, prompt) in enumerate(prompts):
                ids, ended = continue_units(speech_lm, prompt, name, config)
                path = f"{number:03d}-{model}.wav"
                whole = Units(np.concatenate([prompt.ids, ids]), None, units.frame_rate)
                audio = vocoder.decode([whole])[0]
                write_audio(out / path, audio)
                rows.append(
                    {
                        "prompt": name,
                        "model": model,
                        "audio": path,
                        "num_units": len(ids),
                        "ended": ended,
                        "seconds": audio.seconds,
                        "units": ids.tolist(),
                    }
                )
                progress.advance()
    write_json_lines(out / CONTINUATIONS_FILE, rows)
    made = [row for row in rows if row["model"] is not None]
    return {
        "num_prompts": len(prompts),
        "num_continuations": len(made),
        "num_ended_by_the_model": sum(row["ended"] for row in made),
        "sample_rate": vocoder.sample_rate,
    }


def find_prompts(units: UnitsFolder, config: GenerateConfig) -> list[tuple[str, Units]]:
    """`num_prompts` prompts with their ids, each cut to `prompt_seconds`.

    Raises:
        InputError: there are none.
    """
    if (units.path / PAIRS_FILE).is_file():
        found = [(pair.id, pair.prompt) for pair in read_pairs(units) if len(pair.prompt)]
    else:
        found = [(name, units[number]) for number, name in enumerate(units.names) if len(units[number])]
    if not found:
        raise InputError(f"{units.path}: holds no prompts")
    chosen = np.linspace(0, len(found) - 1, min(config.num_prompts, len(found))).round().astype(int)
    prompts = [found[index] for index in chosen]
    if not config.prompt_seconds:
        return prompts
    frames = max(1, round(config.prompt_seconds * units.frame_rate))
    return [(name, prompt.split(frames)[0]) for name, prompt in prompts]


def continue_units(
    speech_lm: "SpeechLM", prompt: Units, name: str, config: GenerateConfig
) -> tuple[np.ndarray, bool]:
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
