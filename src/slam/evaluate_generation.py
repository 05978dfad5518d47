"""Spoken continuations → GenPPL, auto-BLEU-2, diversity, rate, a judge's rating, and every sample's text.

GenPPL is the Slam paper's (section 3, Table 6): a recogniser writes down prompt and continuation, a text LM
scores the text, and e is raised to the mean over samples of the mean negative log-likelihood a token. It is
read beside auto-BLEU-2, since a model that says one thing over and over is probable, too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slam.continuations import Sample, Sound, check_tokenizer, read_continuations
from slam.errors import ConfigError, InputError
from slam.judge import Judge, JudgeConfig
from slam.ledger import Ledger
from slam.metrics.auto_bleu import auto_bleu, words
from slam.metrics.generation import distinct, each, exp_mean, jensen_shannon, mean, pooled, ratio
from slam.metrics.preference import Estimate, groups
from slam.progress import bar
from slam.run import Results, source, stage, write_json, write_json_lines
from slam.units import Units, read_units

RESULTS_FILE = "results.json"
ITEMS_FILE = "items.jsonl"
_BATCH = 8  # sounds that are heard together
_LOOPS = 0.5  # share of repeated 4-grams of units from which a continuation is called a loop


@dataclass(frozen=True, kw_only=True)
class EvaluateGenerationConfig:
    """Settings of `slam evaluate-generation`."""

    continuations: dict[str, Path] = source(required=True)
    """Folders that slam generate wrote, or of any sounds: the name to report → folder."""
    prompt_seconds: float | None = None
    """How long the prompt is in sounds that slam generate did not make, if it is known."""
    units_only: bool = False
    """Measure units alone: nothing is recognised."""
    recognizer: str = "whisper"
    """Who writes down what is said: whisper, units-ctc, or package.module:Name."""
    recognizer_from: Path | None = source()
    """Folder of the recogniser."""
    hub_recognizer: str = "openai/whisper-large-v3-turbo"
    """Or its name on the hub, if no folder is given."""
    from_units: bool = False
    """Read what the models wrote, not what their vocoder spoke: with units-ctc, which reads units."""
    lm: Path | None = source()
    """Folder of the text LM that scores what is said."""
    hub_lm: str = "meta-llama/Llama-3.2-1B"
    """Or its name on the hub, if no folder is given."""
    real: Path | None = source()
    """A folder of units of real speech, to hold the distribution of units against."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Whom to ask for ratings, and how; nobody is asked without judge.model."""
    judge_question: Path | None = source()
    """A text file with {prompt} and {continuation} to ask instead of the rubric of slam."""
    max_failures: float = 0.0
    """Share of sounds that may be unreadable before the stage fails."""
    seed: int = 0
    """Decides the bootstrap's resamples."""

    def __post_init__(self) -> None:
        if not self.continuations:
            raise ConfigError("continuations: name at least one folder")
        if self.prompt_seconds is not None and not self.prompt_seconds > 0:
            raise ConfigError(f"prompt_seconds = {self.prompt_seconds}: must be more than 0")
        if not 0 <= self.max_failures <= 1:
            raise ConfigError(f"max_failures = {self.max_failures}: is a share, between 0 and 1")
        if self.units_only and self.judge.model is not None:
            raise ConfigError("units_only recognises nothing that a judge could read; leave one out")
        if self.from_units and (self.units_only or self.recognizer != "units-ctc"):
            raise ConfigError("from_units goes with recognizer = units-ctc, and not with units_only")


@dataclass(frozen=True)
class _Heard:
    """What is known of a sample beyond its sounds."""

    sample: Sample
    text: str | None = None  # of prompt and continuation; None where nothing was recognised
    prompt_text: str | None = None
    continuation_text: str | None = None
    seconds: float | None = None
    nll: float | None = None  # nats, the mean a token of the whole text
    continuation_nll: float | None = None
    was_cut: bool = False
    rating: int | None = None
    answer: str | None = None

    @property
    def item(self) -> dict[str, Any]:
        """Its row in `items.jsonl`."""
        about = {"model": self.sample.model, "id": self.sample.id, "audio": str(self.sample.whole.path)}
        known = {k: v for k, v in self.__dict__.items() if k != "sample" and v is not None}
        return about | known


@stage
def evaluate_generation(config: EvaluateGenerationConfig, out: Path) -> Results:
    """Measure the continuations of every folder; write `results.json` and `items.jsonl` into `out`.

    Raises:
        InputError: there are no continuations, too many cannot be read, a model cannot be loaded, the judge
            cannot be reached, or a likelihood is not a number.
        MismatchError: `real` is of another tokenizer than the continuations.
    """
    samples = read_continuations(config.continuations, config.prompt_seconds)
    if not samples:
        raise InputError(f"{next(iter(config.continuations.values()))}: holds no continuations")
    real = None
    if config.real is not None:
        folder = read_units(config.real)
        check_tokenizer(config.continuations, "real", config.real, folder.tokenizer_fingerprint)
        real = [folder[number].ids for number in range(len(folder))]
    judge = None if config.judge.model is None else Judge.of(config.judge, config.judge_question)
    results: Results = {"num_samples": len(samples)}
    heard = [_Heard(sample, seconds=sample.seconds) for sample in samples]
    if not config.units_only:
        heard, failures = _recognised(config, samples, out)
        results |= {"num_failures": len(failures), "failures": failures[:20]}
        heard = list(_likelihoods(config, heard, out))
        results["num_empty"] = sum(one.text == "" for one in heard)
        results["empty"] = [one.sample.id for one in heard if one.text == ""][:20]
        results["num_cut"] = sum(one.was_cut for one in heard)
    if judge is not None:
        heard, about = _rated(judge, heard, out)
        results |= about
    rows = []
    for model, numbers in groups([one.sample.model for one in heard]).items():
        rows += [{"model": model} | row for row in _measured([heard[n] for n in numbers], real, config.seed)]
    write_json_lines(out / ITEMS_FILE, [one.item for one in heard])
    write_json(out / RESULTS_FILE, rows)
    return results


def _recognised(
    config: EvaluateGenerationConfig, samples: Sequence[Sample], out: Path
) -> tuple[list[_Heard], list[str]]:
    """What each sample says, whole and in its parts; sounds that cannot be read are left out and named."""
    source = config.recognizer_from or config.hub_recognizer
    sounds = {
        sound.key: sound
        for one in samples
        for sound in (one.whole, one.prompt, one.continuation)
        if sound is not None
    }
    with Ledger(out / "transcripts.jsonl") as known, bar("recognising", len(sounds)) as progress:
        left = [key for key in sounds if key not in known.rows]
        progress.advance(len(sounds) - len(left))
        recognise = _recogniser(config, str(source)) if left else None
        for begin in range(0, len(left), _BATCH):
            keys = left[begin : begin + _BATCH]
            assert recognise is not None  # noqa: S101 - something is left to be heard
            known.write(recognise({key: sounds[key] for key in keys}))
            progress.advance(len(keys))
        rows = dict(known.rows)
    heard, failures = [], []
    for one in samples:
        parts = [sound for sound in (one.whole, one.prompt, one.continuation) if sound is not None]
        reasons = [reason for sound in parts if (reason := rows[sound.key].get("reason")) is not None]
        if reasons:
            failures.append(f"{one.model} {one.id}: {reasons[0]}")
        else:
            heard.append(_said(one, rows))
    if len(failures) > config.max_failures * len(samples) or not heard:
        raise InputError(
            f"{len(failures)} of {len(samples)} continuations cannot be read, the first: {failures[0]}"
        )
    return heard, failures


def _recogniser(
    config: EvaluateGenerationConfig, source: str
) -> Callable[[Mapping[str, Sound]], dict[str, dict[str, Any]]]:
    """What says of some sounds, or of the units that they speak, the text and the seconds, or why not."""
    from slam.recognizers import load_recognizer
    from slam.recognizers.units_ctc import UnitsCtc

    recognizer = load_recognizer(config.recognizer, source)
    if config.from_units and isinstance(recognizer, UnitsCtc):
        read, tokenizer = recognizer.read_units, recognizer.tokenizer
        check_tokenizer(config.continuations, "from_units", Path(source), tokenizer.fingerprint)

        def written(sounds: Mapping[str, Sound]) -> dict[str, dict[str, Any]]:
            found = {}
            for key, sound in sounds.items():
                if sound.units is None:
                    raise InputError(f"{sound.path}: its units are not known; leave out from_units")
                ids = np.array(sound.units, np.uint16)
                if ids.max(initial=0) >= tokenizer.num_units:
                    raise InputError(
                        f"{sound.path}: unit {ids.max()}, but {source} reads units below "
                        f"{tokenizer.num_units}; generate again"
                    )
                found[key] = {"text": read([Units(ids, None, tokenizer.frame_rate)])[0], "seconds": None}
            return found

        return written

    def heard(sounds: Mapping[str, Sound]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        readable = {}
        for key, sound in sounds.items():
            try:
                readable[key] = sound.read()
            except InputError as error:
                found[key] = {"reason": str(error)}
        texts = recognizer.transcribe(list(readable.values())) if readable else []
        for (key, audio), text in zip(readable.items(), texts, strict=True):
            found[key] = {"text": text, "seconds": audio.seconds}
        return found

    return heard


def _said(one: Sample, rows: Mapping[str, Mapping[str, Any]]) -> _Heard:
    def text(sound: Sound | None) -> str | None:
        return None if sound is None else str(rows[sound.key]["text"])

    whole = rows[one.whole.key]
    return _Heard(
        one, whole["text"], text(one.prompt), text(one.continuation), whole["seconds"] or one.seconds
    )


def _likelihoods(config: EvaluateGenerationConfig, heard: Sequence[_Heard], out: Path) -> Iterator[_Heard]:
    """The samples with their likelihoods under the text LM."""
    from slam.text_lm import TextLM

    place = str(config.lm or config.hub_lm)
    with Ledger(out / "likelihoods.jsonl") as known, bar("scoring text", len(heard)) as progress:
        lm = None
        for one in heard:
            key = f"{one.sample.model} {one.sample.id}"
            if key not in known.rows:
                lm = TextLM.load(place) if lm is None else lm
                whole = lm.score(one.text or "")
                part = None
                if one.prompt_text is not None and one.continuation_text:
                    joined = f"{one.prompt_text} {one.continuation_text}".strip()
                    part = lm.score(joined, len(one.prompt_text))
                known.write(
                    {
                        key: {
                            "nll": whole and whole.nll,
                            "continuation_nll": part and part.nll,
                            "was_cut": bool(whole and whole.was_cut),
                        }
                    }
                )
            progress.advance()
            yield _Heard(**(one.__dict__ | known.rows[key]))


def _rated(judge: Judge, heard: Sequence[_Heard], out: Path) -> tuple[list[_Heard], Results]:
    """The samples with the judge's ratings of their continuations; no sample is asked about twice."""
    asked = [one for one in heard if one.continuation_text]
    with (
        Ledger(out / "judgements.jsonl") as known,
        bar("judging", len(asked)) as progress,
        ThreadPoolExecutor(judge.config.num_requests) as workers,
    ):

        def ask(one: _Heard) -> None:
            key = f"{one.sample.model} {one.sample.id}"
            if key not in known.rows:
                known.write({key: asdict(judge.ask(one.prompt_text or "", one.continuation_text or ""))})

        for _ in workers.map(ask, asked):
            progress.advance()
        rows = dict(known.rows)
    answers = [rows[f"{one.sample.model} {one.sample.id}"] for one in asked]
    sent, received = (sum(one[name] for one in answers) for name in ("prompt_tokens", "completion_tokens"))
    found = []
    for one in heard:
        row = rows.get(f"{one.sample.model} {one.sample.id}")
        about = {} if row is None else {"rating": row["rating"], "answer": row["text"]}
        found.append(_Heard(**(one.__dict__ | about)))
    return found, {
        "num_judged": len(answers),
        "num_without_continuation": len(heard) - len(asked),
        "num_refusals": sum(one["rating"] is None for one in answers),
        "num_retries": sum(one["num_retries"] for one in answers),
        "judge_prompt_tokens": sent,
        "judge_completion_tokens": received,
        "judge_cost": judge.config.cost(sent, received),
    }


def _measured(heard: Sequence[_Heard], real: Sequence[Any] | None, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of one model: what can be measured of its samples."""

    def row(metric: str, values: Any, measure: Callable[..., Estimate] = mean) -> Iterator[dict[str, Any]]:
        numbers = [np.array(some, np.float64) for some in values]
        if len(numbers[0]):
            yield {"metric": metric} | asdict(measure(*numbers, seed=seed))

    def plain(metric: str, value: float | None, count: int) -> Iterator[dict[str, Any]]:
        if value is not None:
            yield {"metric": metric, "value": value, "low": None, "high": None, "n": count}

    yield from row("genppl", [[o.nll for o in heard if o.nll is not None]], exp_mean)
    parts = [o.continuation_nll for o in heard if o.continuation_nll is not None]
    yield from row("genppl_continuation", [parts], exp_mean)
    texts = [words(o.text) for o in heard if o.text]
    yield from row("auto_bleu_2", [each(lambda some: auto_bleu(some, 2), texts)])
    yield from row("judge", [[o.rating for o in heard if o.rating is not None]])
    for order in (1, 2, 3):
        yield from plain(f"distinct_{order}", distinct(pooled(texts, order)), len(texts))
    spoken = [(len(words(o.text)), o.seconds) for o in heard if o.text and o.seconds]
    yield from row("words_per_second", list(zip(*spoken, strict=True)) or [[]], ratio)
    yield from row("seconds", [[o.seconds for o in heard if o.seconds is not None]])
    made = [o.sample.units for o in heard if o.sample.units is not None]
    yield from row("units", [[len(units) for units in made]])
    yield from row("ended_by_the_model", [[o.sample.ended for o in heard if o.sample.ended is not None]])
    yield from row("auto_bleu_2_of_units", [[auto_bleu(units, 2) for units in made if len(units) > 1]])
    yield from row("loops", [[auto_bleu(units, 4) > _LOOPS for units in made]])
    for order in (1, 2):
        mine = pooled(made, order)
        yield from plain(f"distinct_{order}_of_units", distinct(mine), len(made))
        if real is not None:
            yield from plain(
                f"divergence_{order}_from_real", jensen_shannon(mine, pooled(real, order)), len(made)
            )
        prompts = [o.sample.prompt_units for o in heard if o.sample.prompt_units is not None]
        yield from plain(
            f"divergence_{order}_from_prompts", jensen_shannon(mine, pooled(prompts, order)), len(made)
        )
