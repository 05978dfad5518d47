"""Units, or text → token shards: uint16 tokens end to end, memory-mapped, with the documents' ends kept.

Text goes the same way through a small tokenizer (words or byte-pair encoding, by the `tokenizers` library),
so that the text LM that warm-starts the speech LM is trained by the same code.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slam.errors import ConfigError, InputError, MismatchError
from slam.run import Results, digest, read_json_lines, replacing, source, stage
from slam.shards import TEXT_TOKENIZER, describe, frame_documents, write_split
from slam.units import UNITS_FILE, Ids, Vocabulary, read_units

_TEXT_TOKENIZER_FILE = "tokenizer.json"
_SPECIAL = ("<pad>", "<s>")  # their order gives text the tokens of `Vocabulary`: pad 0, boundary 1
_UNKNOWN = "<unk>"
_NUM_BYTES = 256  # byte-pair encoding starts from them


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Settings of `slam pack`."""

    train: tuple[Path, ...] = source(required=True)
    """Folders of units, all of one tokenizer; or of text (a manifest.jsonl with a "text" in each line)."""
    validation: tuple[Path, ...] = source(())
    """Folders to validate on; without any, a share of `train` is kept apart."""
    validation_share: float = 0.02
    """Share of the documents kept apart for validation where no folder is given."""
    text_tokenizer: Literal["words", "bpe"] = "words"
    """How text is cut into tokens."""
    text_vocabulary: int = 4096
    """The most text tokens there may be."""
    seed: int = 0
    """Decides which documents are kept apart."""

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("train: name at least one folder of units or text")
        if not 0 < self.validation_share < 1:
            raise ConfigError(f"validation_share = {self.validation_share}: must lie between 0 and 1")
        least = _NUM_BYTES + len(_SPECIAL) if self.text_tokenizer == "bpe" else 16
        if not least <= self.text_vocabulary <= 65_000:  # noqa: PLR2004 - tokens are uint16
            raise ConfigError(
                f"text_vocabulary = {self.text_vocabulary}: must lie between {least} and 65,000"
            )


@dataclass(frozen=True)
class Documents:
    """Utterances end to end, of units or of text."""

    ids: npt.NDArray[Any]  # [N]
    ends: npt.NDArray[np.int64]  # [D]

    def take(self, chosen: npt.NDArray[np.bool_]) -> "Documents":
        """Those of the documents that `chosen` `[D]` marks."""
        lengths = np.diff(self.ends, prepend=0)
        return Documents(self.ids[np.repeat(chosen, lengths)], np.cumsum(lengths[chosen]))


@stage
def pack(config: PackConfig, out: Path) -> Results:
    """Pack units or text into the folder `out`.

    Raises:
        InputError: a folder holds neither, or there is nothing to pack.
        MismatchError: folders were encoded by different tokenizers, or some hold units and some text.
    """
    has_units = [(folder / UNITS_FILE).is_file() for folder in config.train + config.validation]
    if all(has_units):
        read, about = _units_reader(config)
    elif any(has_units):
        raise MismatchError("train and validation: some folders hold units and some text; pack them apart")
    else:
        read, about = _text_reader(config, out)
    train = read(config.train)
    if config.validation:
        validation = read(config.validation)
    else:
        held_out = np.random.default_rng(config.seed).random(len(train.ends)) < config.validation_share
        if len(train.ends) > 1:
            held_out[0], held_out[-1] = False, True  # neither side is ever empty
        train, validation = train.take(~held_out), train.take(held_out)
    begin = time.perf_counter()
    counts = {}
    for split, documents in (("train", train), ("validation", validation)):
        tokens, ends = frame_documents(documents.ids, documents.ends, about["vocabulary"])
        if not len(ends):
            raise InputError(f"{split}: there is nothing to pack; give longer or more documents")
        write_split(out, split, tokens, ends)
        counts[split] = {
            "documents": len(ends),
            "tokens": len(tokens),
            "empty_documents": len(documents.ends) - len(ends),
        }
    describe(out, counts=counts, **about)
    seconds = time.perf_counter() - begin
    total = sum(count["tokens"] for count in counts.values())
    return {"splits": counts, "tokens_per_second": round(total / max(seconds, 1e-9))}


Reader = Callable[[Sequence[Path]], Documents]


def _units_reader(config: PackConfig) -> tuple[Reader, dict[str, Any]]:
    """Read folders of units, and what their tokens mean."""
    first = read_units(config.train[0])

    def read(folders: Sequence[Path]) -> Documents:
        opened = [read_units(folder) for folder in folders]
        for folder in opened:
            if folder.tokenizer_fingerprint != first.tokenizer_fingerprint:
                raise MismatchError(
                    f"{folder.path}: encoded by {folder.tokenizer} {folder.tokenizer_fingerprint}, "
                    f"{first.path} by {first.tokenizer} {first.tokenizer_fingerprint}; use one tokenizer"
                )
        return _join([(folder.ids, folder.ends) for folder in opened])

    about = {
        "vocabulary": first.vocabulary,
        "tokenizer": first.tokenizer,
        "fingerprint": first.tokenizer_fingerprint,
    }
    return read, about


def _join(parts: Sequence[tuple[Ids, npt.NDArray[np.int64]]]) -> Documents:
    offsets = np.cumsum([0] + [len(ids) for ids, _ in parts])
    return Documents(
        np.concatenate([ids for ids, _ in parts]),
        np.concatenate([ends + offset for (_, ends), offset in zip(parts, offsets, strict=False)]),
    )


def _text_reader(config: PackConfig, out: Path) -> tuple[Reader, dict[str, Any]]:
    """Fit a text tokenizer on the training text, save it in `out`, and read text with it."""
    tokenizer = _fit_text_tokenizer(_texts(config.train), config)
    with replacing(out / _TEXT_TOKENIZER_FILE) as partial:
        tokenizer.save(str(partial))
    vocabulary = Vocabulary(tokenizer.get_vocab_size() - len(_SPECIAL))

    def read(folders: Sequence[Path]) -> Documents:
        encoded = [entry.ids for entry in tokenizer.encode_batch(_texts(folders))]
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        flat = np.concatenate([np.zeros(0, np.int64), *map(np.asarray, encoded)])
        return Documents((flat - vocabulary.offset).astype(np.int64), np.cumsum(lengths))

    about = {
        "vocabulary": vocabulary,
        "tokenizer": TEXT_TOKENIZER + config.text_tokenizer,
        "fingerprint": digest(tokenizer.to_str()),
    }
    return read, about


def _texts(folders: Sequence[Path]) -> list[str]:
    texts = []
    for folder in folders:
        path = folder / "manifest.jsonl" if folder.is_dir() else folder
        if not path.is_file():
            raise InputError(f"{folder}: holds neither units nor text (a manifest.jsonl)")
        rows = read_json_lines(path)
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get("text"), str):
                raise InputError(f'{path}:{number}: has no "text"; pack takes units, or text')
            texts.append(row["text"])
    if not texts:
        raise InputError(f"{folders[0]}: holds no text")
    return texts


def _fit_text_tokenizer(texts: Sequence[str], config: PackConfig) -> Any:
    """A tokenizer of whole words and punctuation, or of byte-pair encoding, with pad 0 and boundary 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    size = config.text_vocabulary
    trainer: Any
    if config.text_tokenizer == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(
            vocab_size=size, special_tokens=[*_SPECIAL, _UNKNOWN], show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(_SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True  # a text that spells "<s>" means those letters, not a boundary
    return tokenizer
