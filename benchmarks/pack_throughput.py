"""Units packed a second, from units to shards: slam against JSON lines read and mapped line by line.

The baseline is the plainest way from one JSON object an utterance: its integers mapped to tokens, appended to
a list, saved. `reference` is the reference toolkit's way: integers written as a string of `<Un17>` into JSON
lines again, read back, and made ids by a text tokenizer (its second and third step). The gate: all give the
same tokens, the first two the same document ends.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
from side_by_side import arguments, finish, interleaved
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from slam.pack import PackConfig, pack
from slam.units import Units, Vocabulary, finish_units, write_shard

NUM_UNITS = 500


def corpus(folder: Path, total: int) -> Path:
    """A folder of units of random lengths, and the same as JSON lines beside it."""
    random = np.random.default_rng(0)
    lengths = random.integers(5, 1500, max(2, total // 750))
    units = [
        Units(random.integers(0, NUM_UNITS, n).astype(np.uint16), np.ones(n, np.uint16), 25.0)
        for n in lengths
    ]
    write_shard(folder / "units", 0, units, [{"id": str(i)} for i in range(len(units))])
    finish_units(
        folder / "units",
        num_units=NUM_UNITS,
        tokenizer="benchmark",
        fingerprint="0",
        frame_rate=25.0,
        num_shards=1,
    )
    with (folder / "units.jsonl").open("w", encoding="utf-8") as handle:
        for number, item in enumerate(units):
            handle.write(json.dumps({"file_name": str(number), "units": item.ids.tolist()}) + "\n")
    return folder


def ours(folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        begin = time.perf_counter()
        run = pack(
            PackConfig(train=(folder / "units",), validation=(folder / "units",)), Path(out) / "shards"
        )
        seconds = time.perf_counter() - begin
    return sum(split["tokens"] for split in run.results["splits"].values()) / seconds


def plain_tokens(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    vocabulary = Vocabulary(NUM_UNITS)
    tokens: list[int] = []
    ends: list[int] = []
    with (folder / "units.jsonl").open(encoding="utf-8") as handle:
        for line in handle:
            tokens.append(vocabulary.bos)
            tokens.extend(unit + vocabulary.offset for unit in json.loads(line)["units"])
            tokens.append(vocabulary.eos)
            ends.append(len(tokens))
    return np.array(tokens, np.uint16), np.array(ends)


def baseline(folder: Path) -> float:
    begin = time.perf_counter()
    tokens, ends = plain_tokens(folder)
    np.save(folder / "plain.npy", tokens)
    np.save(folder / "plain-ends.npy", ends)
    return len(tokens) / (time.perf_counter() - begin)


def reference_tokens(folder: Path) -> np.ndarray:
    """JSON lines → strings in JSON lines → a word-level tokenizer of Hugging Face → tokens."""
    vocabulary = Vocabulary(NUM_UNITS)
    words = {f"<Un{unit}>": unit + vocabulary.offset for unit in range(NUM_UNITS)}
    words |= {"<pad>": vocabulary.pad, "<S>": vocabulary.bos}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = Split(Regex(r"<[^>]+>"), "isolated")
    with (
        (folder / "units.jsonl").open(encoding="utf-8") as features,
        (folder / "strings.jsonl").open("w", encoding="utf-8") as strings,
    ):
        for line in features:
            row = json.loads(line)
            text = "<S>" + "".join(f"<Un{unit}>" for unit in row["units"]) + "<S>"
            strings.write(json.dumps({"file_name": row["file_name"], "audio_repr": text}) + "\n")
    tokens: list[int] = []
    with (folder / "strings.jsonl").open(encoding="utf-8") as strings:
        for line in strings:
            tokens.extend(tokenizer.encode(json.loads(line)["audio_repr"]).ids)
    return np.array(tokens, np.uint16)


def reference(folder: Path) -> float:
    begin = time.perf_counter()
    tokens = reference_tokens(folder)
    np.save(folder / "plain.npy", tokens)
    return len(tokens) / (time.perf_counter() - begin)


def main() -> None:
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = corpus(Path(name), 1_000_000 if options.quick else 10_000_000)
        pack(PackConfig(train=(folder / "units",), validation=(folder / "units",)), folder / "shards")
        tokens, ends = plain_tokens(folder)
        same = np.array_equal(np.load(folder / "shards/train/tokens.npy"), tokens) and np.array_equal(
            np.load(folder / "shards/train/ends.npy"), ends
        )
        same &= np.array_equal(reference_tokens(folder), tokens)
        found = interleaved(lambda: ours(folder), lambda: baseline(folder))
        against = interleaved(lambda: ours(folder), lambda: reference(folder))
        found |= {"reference": against["baseline"], "reference_ratio": against["ratio"]}
        found |= {"reference_ratios": against["ratios"]}
    finish(
        "pack_throughput", "units/s", found, {"passed": bool(same), "same_tokens": bool(same)}, options.json
    )


if __name__ == "__main__":
    main()
