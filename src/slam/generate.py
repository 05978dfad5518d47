"""Speech LMs and spoken prompts → spoken continuations.

Sampling defaults are the paper's (Table 6). Each continuation is seeded by its prompt's id, so it is the same
whichever others are made beside it: prompts go through the model in batches, and sounds through the vocoder.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from slam.audio import Audio, write_audio
from slam.errors import ConfigError
from slam.progress import bar
from slam.prompts import Prompt, PromptConfig, find_prompts
from slam.run import Results, source, stage, write_json_lines
from slam.sampling import Sampling, seed_of
from slam.streaming import Stream
from slam.tokenizers import BUILT_IN, load_tokenizer
from slam.units import Units, read_units
from slam.vocoders import Vocoder, load_vocoder

if TYPE_CHECKING:
    from slam.decoding import Continuation
    from slam.model import SpeechLM

CONTINUATIONS_FILE = "continuations.jsonl"
_UNITS_AT_ONCE = 4096  # that the vocoder speaks in a batch


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Sampling, PromptConfig):
    """Settings of `slam generate`."""

    models: dict[str, Path] = source(required=True)
    """The speech LMs that speak: the name to report → folder."""
    max_new_units: int = 150
    """Most units in a continuation."""
    alone: bool = False
    """Also speak each continuation without its prompt, for scores of the continuation alone."""
    stream: bool = False
    """Also speak each continuation in chunks while it is drawn, and time it."""
    vocoder: str = "griffin-lim"
    """Who speaks the units: a built-in vocoder, or package.module:Name."""
    vocoder_from: Path | None = source()
    """Folder of its weights, for one that has any."""
    tokenizer: str | None = None
    """The tokenizer's name, needed only for one that is not built in."""
    seed: int = 0
    """Decides every draw."""

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)
        PromptConfig.__post_init__(self)
        if not self.models:
            raise ConfigError("name at least one model")
        if self.max_new_units < 1:
            raise ConfigError(f"max_new_units = {self.max_new_units}: must be at least 1")
        for name in self.models:
            # each model's sounds are named after it, beside those of the prompts
            if not re.fullmatch(r"[\w.+-]+", name) or name == "prompt":
                raise ConfigError(
                    f"models: {name!r} cannot name a sound file; use letters, digits and dashes"
                )
            for asked, way in ((self.alone, "alone"), (self.stream, "stream")):
                if asked and f"{name}-{way}" in self.models:
                    raise ConfigError(f"models: {name}-{way} would take the names of {name!r}'s sounds")


@stage
def generate(config: GenerateConfig, out: Path) -> Results:
    """Continue prompts with each model; write a wav for each prompt and continuation, and a manifest.

    Raises:
        InputError: a model or the prompts cannot be read.
        MismatchError: the prompts were encoded by another tokenizer than a model's.
    """
    from slam.decoding import continue_units
    from slam.model import SpeechLM

    units = read_units(config.prompts)
    named = config.tokenizer if config.tokenizer not in BUILT_IN else None
    tokenizer = load_tokenizer(units.tokenizer_folder, named=named)
    vocoder = load_vocoder(config.vocoder, tokenizer, config.vocoder_from)
    prompts = find_prompts(units, config)
    rows = _prompt_rows(vocoder, prompts.taken, out)
    with bar("generating", len(prompts) * len(config.models)) as progress:
        for model, folder in config.models.items():
            speech_lm = SpeechLM.load(folder)
            speech_lm.check_tokenizer(units.tokenizer, units.tokenizer_fingerprint, config.prompts)
            found = continue_units(
                speech_lm,
                [prompt.units.ids for prompt in prompts.taken],
                max_new_units=config.max_new_units,
                sampling=config,
                seeds=[seed_of(config.seed, prompt.id) for prompt in prompts.taken],
                advance=progress.advance,
            )
            made = _continuation_rows(vocoder, prompts.taken, found, out, model, alone=config.alone)
            if config.stream:
                _stream_rows(made, vocoder, speech_lm, prompts.taken, out=out, config=config)
            rows += made
    write_json_lines(out / CONTINUATIONS_FILE, rows)
    made = [row for row in rows if row["model"] is not None]
    return _timings(made) | {
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


def _prompt_rows(vocoder: Vocoder, prompts: Sequence[Prompt], out: Path) -> list[dict[str, Any]]:
    """Speak the prompts, each with its own durations; what the manifest says of them."""
    names = [f"{number:03d}-prompt.wav" for number in range(len(prompts))]
    seconds = _speak(vocoder, [prompt.units for prompt in prompts], [out / name for name in names])
    return [
        {
            "prompt": prompt.id,
            "model": None,
            "audio": name,
            "num_units": len(prompt.units),
            "seconds": lasts,
            "units": prompt.units.ids.tolist(),
        }
        for prompt, name, lasts in zip(prompts, names, seconds, strict=True)
    ]


def _continuation_rows(
    vocoder: Vocoder,
    prompts: Sequence[Prompt],
    found: Sequence["Continuation"],
    out: Path,
    model: str,
    *,
    alone: bool,
) -> list[dict[str, Any]]:
    """Speak prompts with their continuations, the latter also alone; what the manifest says of them."""
    rate = prompts[0].units.frame_rate
    whole = [
        Units(np.concatenate([prompt.units.ids, one.ids]), None, rate)
        for prompt, one in zip(prompts, found, strict=True)
    ]
    names = [f"{number:03d}-{model}.wav" for number in range(len(prompts))]
    seconds = _speak(vocoder, whole, [out / name for name in names])
    rows = [
        {"prompt": prompt.id, "model": model, "prompt_seconds": prompt.seconds}
        | {"audio": name, "seconds": lasts}
        for prompt, name, lasts in zip(prompts, names, seconds, strict=True)
    ]
    if alone:  # a model that ended at once said nothing, and no sound file holds nothing
        said = [number for number, one in enumerate(found) if len(one.ids)]
        names = [f"{number:03d}-{model}-alone.wav" for number in said]
        seconds = _speak(
            vocoder, [Units(found[number].ids, None, rate) for number in said], [out / name for name in names]
        )
        rows = [row | {"alone": None, "alone_seconds": 0.0} for row in rows]
        for number, name, lasts in zip(said, names, seconds, strict=True):
            rows[number] |= {"alone": name, "alone_seconds": lasts}
    return [
        row | {"num_units": len(one.ids), "ended": one.ended, "units": one.ids.tolist()}
        for row, one in zip(rows, found, strict=True)
    ]


def _stream_rows(
    rows: list[dict[str, Any]],
    vocoder: Vocoder,
    speech_lm: "SpeechLM",
    prompts: Sequence[Prompt],
    *,
    out: Path,
    config: GenerateConfig,
) -> None:
    """Draw and speak each continuation again, alone and in chunks; the manifest's rows say how quickly."""
    from slam.decoding import stream_units

    for row, prompt in zip(rows, prompts, strict=True):
        begun = time.perf_counter()
        drawn = stream_units(
            speech_lm,
            prompt.units.ids,
            max_new_units=config.max_new_units,
            sampling=config,
            seed=seed_of(config.seed, prompt.id),
        )
        stream = Stream(drawn, vocoder, prompt.units.frame_rate, begun=begun, most=config.max_new_units)
        samples = [chunk.samples for chunk in stream]
        name = None
        if samples:
            name = f"{Path(row['audio']).stem}-stream.wav"
            write_audio(out / name, Audio(np.concatenate(samples), vocoder.sample_rate))
        row |= {
            "stream": name,
            "seconds_to_first_sound": stream.seconds_to_first_sound,
            "real_time_factor": stream.real_time_factor,
        }


def _timings(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians over the continuations that were streamed and say something."""
    found = {}
    for key in ("seconds_to_first_sound", "real_time_factor"):
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            found[key] = round(median(values), 4)
    return found


def _speak(vocoder: Vocoder, utterances: Sequence[Units], paths: Sequence[Path]) -> list[float]:
    """Write each utterance's sound, those of like length spoken together; how many seconds they last."""
    from slam.packing import by_length

    seconds = [0.0] * len(utterances)
    for group in by_length([len(units) for units in utterances], _UNITS_AT_ONCE):
        for index, audio in zip(group, vocoder.decode([utterances[i] for i in group]), strict=True):
            write_audio(paths[index], audio)
            seconds[index] = audio.seconds
    return seconds
