"""Units and the texts of their recordings → a small recogniser, judged on utterances that it never saw.

For closed texts such as the demo's: with it the question whether generated units say anything has an answer
in words. It is believed only as far as its word errors on held-out speech allow, which are measured first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slam.errors import ConfigError, InputError, MismatchError
from slam.metrics.generation import ratio
from slam.progress import bar, console
from slam.recognizers.units_ctc import UnitsCtc, labels_of, network, words_of
from slam.recordings import MANIFEST_FILE
from slam.run import Results, read_json_lines, read_run, source, stage, write_json_lines
from slam.threads import one_thread
from slam.tokenizers import BUILT_IN, load_tokenizer
from slam.units import Ids, Units, UnitsFolder, read_units
from slam.vocoders import load_vocoder

if TYPE_CHECKING:
    import torch

_FILE = "validation.jsonl"
_CLIP = 1.0
_WARMUP = 0.05


@dataclass(frozen=True, kw_only=True)
class FitRecognizerConfig:
    """Settings of `slam fit-recognizer`."""

    units: tuple[Path, ...] = source(required=True)
    """Folders of units to fit on, whose recordings' texts are known."""
    validation: Path = source(required=True)
    """A folder of units that were not fitted on, with texts, to judge the recogniser by."""
    texts: Path | None = source()
    """A file of texts (JSON lines of id and text), if the recordings' manifests do not hold them."""
    epochs: int = 3
    """How often each utterance is seen."""
    width: int = 128
    """Width of the network."""
    num_layers: int = 3
    """Convolutions, over seven units each."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    batch_units: int = 4096
    """Units in an update."""
    max_word_errors: float = 0.2
    """Above this share of wrong words on held-out speech the recogniser is called not to be trusted."""
    vocoder: str | None = None
    """Also judge held-out units after this vocoder spoke them: griffin-lim, unit-mel, package.module:Name."""
    vocoder_from: Path | None = source()
    """Folder of the vocoder's weights, for one that has any."""
    tokenizer: str | None = None
    """The tokenizer's name, needed only for one that is not built in."""
    seed: int = 0
    """Decides first weights and order."""

    def __post_init__(self) -> None:
        if not self.units:
            raise ConfigError("units: name at least one folder")
        for name in ("epochs", "width", "num_layers", "batch_units"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.learning_rate <= 0 or not 0 < self.max_word_errors <= 1:
            raise ConfigError("learning_rate must be more than 0, max_word_errors a share above 0")
        if self.vocoder_from is not None and self.vocoder is None:
            raise ConfigError("vocoder_from goes with vocoder; name it")


@dataclass(frozen=True)
class _Said:
    """An utterance and its text."""

    id: str
    units: Units
    text: str


@stage
def fit_recognizer(config: FitRecognizerConfig, out: Path) -> Results:
    """Fit a recogniser of `config.units` into the folder `out`.

    Raises:
        InputError: a folder has no units, or the texts of its utterances are not known.
        MismatchError: the folders are of several tokenizers.
    """
    folders = [read_units(folder) for folder in (*config.units, config.validation)]
    first = folders[0]
    for folder in folders:
        if folder.tokenizer_fingerprint != first.tokenizer_fingerprint:
            raise MismatchError(
                f"{folder.path}: units of {folder.tokenizer} {folder.tokenizer_fingerprint}, those of "
                f"{first.path} are of {first.tokenizer} {first.tokenizer_fingerprint}; use one tokenizer"
            )
    named = config.tokenizer if config.tokenizer not in BUILT_IN else None
    tokenizer = load_tokenizer(first.tokenizer_folder, named=named)
    training = [one for folder in folders[:-1] for one in _said(folder, config.texts)]
    held_out = list(_said(folders[-1], config.texts))
    # a label a unit at most, and a blank between two that are the same
    usable = [one for one in training if len(one.units) > 2 * len(labels_of(one.text)) > 0]
    if not usable:
        raise InputError(
            f"{first.path}: no utterance has more units than twice its words; nothing can be fitted"
        )
    labels = tuple(sorted({label for one in usable for label in labels_of(one.text)}))
    with one_thread():  # small products are over before cores have shared them, and sums keep their order
        made = _fitted(config, usable, labels, first.vocabulary.num_units)
    about = {"width": config.width, "num_layers": config.num_layers}
    recognizer = UnitsCtc(made, labels, tokenizer, about)
    found, rows = _judged(recognizer.read_units([one.units for one in held_out]), held_out, config)
    results: Results = {
        "num_utterances": len(usable),
        "num_too_short": len(training) - len(usable),
        "num_labels": len(labels),
        "num_held_out": len(held_out),
        "num_unknown_words": sum(
            word not in {label.lower() for label in labels} for one in held_out for word in words_of(one.text)
        ),
    } | found
    if config.vocoder is not None:
        vocoder = load_vocoder(config.vocoder, tokenizer, config.vocoder_from)
        heard = recognizer.transcribe(
            [vocoder.decode([Units(one.units.ids, None, one.units.frame_rate)])[0] for one in held_out]
        )
        spoken, spoken_rows = _judged(heard, held_out, config)
        results |= {f"resynthesis_{name}": value for name, value in spoken.items() if name != "trustworthy"}
        rows = [row | {"resynthesis": other["heard"]} for row, other in zip(rows, spoken_rows, strict=True)]
    if not results["trustworthy"]:
        console.print(
            f"{out}: {results['word_errors']:.0%} of held-out words are wrong, more than "
            f"{config.max_word_errors:.0%}; what it hears in generated speech is not to be trusted",
            style="yellow",
            soft_wrap=True,
        )
    write_json_lines(out / _FILE, rows)
    UnitsCtc(made, labels, tokenizer, about | {"word_errors": results["word_errors"]}).save(out)
    return results


def _said(folder: UnitsFolder, texts: Path | None) -> Iterator[_Said]:
    """The utterances of a folder with their texts.

    Raises:
        InputError: the texts are not known.
    """
    path = texts
    if path is None:
        run = read_run(folder.path)
        origin = Path(run.config["audio"]) if run is not None and "audio" in run.config else folder.path
        path = origin / MANIFEST_FILE
    known = {row["id"]: row["text"] for row in read_json_lines(path) if isinstance(row.get("text"), str)}
    missing = next((name for name in folder.names if name not in known), None)
    if missing is not None:
        raise InputError(
            f"{path}: has no text of the utterance {missing!r}; give texts, a file of id and text"
        )
    for number, name in enumerate(folder.names):
        yield _Said(name, folder[number], known[name])


def _fitted(
    config: FitRecognizerConfig, said: Sequence[_Said], labels: Sequence[str], num_units: int
) -> "torch.nn.Module":
    """The network, trained by CTC; batches are of utterances of like length, in the order of the seed."""
    import torch

    torch.manual_seed(config.seed)
    made = network(num_units, len(labels), width=config.width, num_layers=config.num_layers)
    number = {label: index for index, label in enumerate(labels, 1)}
    targets = [[number[label] for label in labels_of(one.text)] for one in said]
    ids = [one.units.ids for one in said]
    batches = list(_batches([len(one) for one in ids], config.batch_units))
    generator = np.random.default_rng(config.seed)
    order = [int(place) for _ in range(config.epochs) for place in generator.permutation(len(batches))]
    optimizer = torch.optim.AdamW(made.parameters(), lr=config.learning_rate, weight_decay=0.01)
    loss_of = torch.nn.CTCLoss(zero_infinity=True)
    with bar("fitting the recogniser", len(order)) as progress:
        for step, place in enumerate(order):
            share = step / len(order)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, (share + 1e-3) / _WARMUP) * (1 - share)
            chosen = batches[place]
            tokens, mask = _padded([ids[index] for index in chosen], num_units)
            scores = made(tokens, mask).log_softmax(-1).transpose(0, 1)
            wanted = [torch.tensor(targets[index]) for index in chosen]
            lengths = torch.tensor([len(ids[index]) for index in chosen])
            loss = loss_of(scores, torch.cat(wanted), lengths, torch.tensor([len(one) for one in wanted]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(made.parameters(), _CLIP)
            optimizer.step()
            progress.advance()
    return made.train(mode=False)


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of utterances of like length, at most `most` units with their padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        if batch and (len(batch) + 1) * lengths[index] > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _padded(some: Sequence[Ids], padding: int) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    rows = [torch.from_numpy(one.astype(np.int64)) for one in some]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    return tokens, (tokens != padding).float()[:, :, None]


def _judged(
    heard: Sequence[str], said: Sequence[_Said], config: FitRecognizerConfig
) -> tuple[Results, list[dict[str, Any]]]:
    """Word errors and their interval, and a row an utterance."""
    from rapidfuzz.distance import Levenshtein

    rows: list[dict[str, Any]] = []
    for text, one in zip(heard, said, strict=True):
        edits = Levenshtein.distance(words_of(text), words_of(one.text))
        rows.append({"id": one.id, "said": one.text, "heard": text, "edits": edits})
    counts = np.array([len(words_of(one.text)) for one in said], np.float64)
    if not counts.sum():
        raise InputError(f"{config.validation}: its texts have no words")
    estimate = ratio(np.array([row["edits"] for row in rows], np.float64), counts, seed=config.seed)
    return {
        "num_held_out_words": int(counts.sum()),
        "word_errors": estimate.value,
        "word_errors_interval": (estimate.low, estimate.high),
        "right_utterances": float(np.mean([row["edits"] == 0 for row in rows])),
        "trustworthy": estimate.value <= config.max_word_errors,
    }, rows
