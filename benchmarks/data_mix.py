"""Real recordings alone, synthetic speech alone, and their mix, at equal tokens, three seeds.

The paper's Table 1 at demo scale. Real speech is some minutes of LibriSpeech, so each arm goes over it
several times; synthetic speech is children's stories read by eSpeak NG, once as much as there is real speech
and once ten times as much. Each seed keeps two other speakers apart. All arms start from one text LM and see
the same number of tokens; each is scored on real and on synthetic speech that it never saw, in nats a unit.

Its data are folders `librispeech` (FLAC, SPEAKER-….flac) and `text` (child-stories.jsonl.gz) under
`--data`.
"""

import argparse
import gzip
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import machine

from slam.audio import audio_seconds
from slam.model import SpeechLM
from slam.pack import PackConfig, pack
from slam.packing import log_likelihoods, use_packed
from slam.pretrain import PretrainConfig, pretrain
from slam.recipe import load_recipe
from slam.runner import run_recipe
from slam.units import read_units

SEEDS = (0, 1, 2)
TOKENS = (15_000, 45_000)  # under two epochs of the real speech, and five
TIMES = 10  # as much synthetic speech as real
WORDS_A_SECOND = 2.9
WORDS_A_LINE = 24  # about as long as an utterance of LibriSpeech
ARMS = {
    "real": ("real",),
    "little synthetic": ("little-synthetic",),
    "synthetic": ("synthetic",),
    "real + little synthetic": ("real", "little-synthetic"),
    "real + synthetic": ("real", "synthetic"),
}
VALIDATIONS = ("real-validation", "synthetic-validation")


def prepare(data: Path, work: Path, seed: int) -> Path:
    """Folders of recordings and files of text for this seed; gives the folder of its runs."""
    out = work / f"seed-{seed}"
    files = sorted((data / "librispeech").glob("*.flac"))
    speakers = sorted({file.name.split("-")[0] for file in files})
    held_out = {speakers[(2 * seed + step) % len(speakers)] for step in (0, 1)}
    seconds = 0.0
    for file in files:
        apart = file.name.split("-")[0] in held_out
        link = out / ("real-validation-recordings" if apart else "real-recordings") / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(file.resolve())
        seconds += 0 if apart else audio_seconds(file)
    lines = list(spoken_lines(data / "text" / "child-stories.jsonl.gz"))
    np.random.default_rng(seed).shuffle(lines)
    little = round(seconds * WORDS_A_SECOND / WORDS_A_LINE)
    parts = {
        "synthetic-validation.txt": lines[:100],
        "synthetic.txt": lines[100 : 100 + TIMES * little],
        "little-synthetic.txt": lines[100 : 100 + little],
        "texts.txt": lines[-8000:],
    }
    for name, some in parts.items():
        text = "\n".join(some) + "\n"
        if not (out / name).is_file():
            (out / name).write_text(text, encoding="utf-8")
    return out


def spoken_lines(path: Path) -> Iterator[str]:
    """Whole sentences of the stories, about `WORDS_A_LINE` words together."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for row in file:
            line: list[str] = []
            for sentence in re.findall(r"[^.!?]+[.!?]+", json.loads(row)["story"]):
                line += re.sub(r"[^A-Za-z',.!? -]", " ", sentence).split()
                if len(line) >= WORDS_A_LINE:
                    yield " ".join(line)
                    line = []


def measure(out: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Train each arm and score it."""
    sources = {
        f"steps.{step}.{key}": out / name
        for step, key, name in (
            ("text", "text", "texts.txt"),
            ("synthetic-speech", "text", "synthetic.txt"),
            ("little-synthetic-speech", "text", "little-synthetic.txt"),
            ("synthetic-validation-speech", "text", "synthetic-validation.txt"),
            ("fit", "audio", "real-recordings"),
            ("real", "audio", "real-recordings"),
            ("real-validation", "audio", "real-validation-recordings"),
        )
    }
    overrides = [f'{key.removeprefix("steps.")}="{path}"' for key, path in sources.items()]
    run_recipe(load_recipe(Path(__file__).with_suffix(".toml"), folder=out, overrides=overrides), 2)
    for arm, parts in ARMS.items():
        name = arm.replace(" + ", "-and-").replace(" ", "-")
        shards = out / f"tokens-{name}"
        train = tuple(out / part for part in parts)
        pack(PackConfig(train=train, validation=(out / VALIDATIONS[0],)), shards)
        for tokens in TOKENS:
            model = out / f"lm-{name}-{tokens}"
            results = pretrain(
                PretrainConfig(
                    shards=shards, base=out / "text-lm", context=512, budget=f"{tokens} tokens",
                    batch_tokens=1024, optimizer="muon", learning_rate=3e-3, muon_learning_rate=5e-3,
                    warmup=0.05, betas=(0.9, 0.98), clip=1.0, validations=1, seed=seed,
                ),
                model,
            ).results  # fmt: skip
            losses = {name: loss(model, out / name) for name in VALIDATIONS}
            units = sum(len(read_units(out / part).ids) for part in parts)
            yield (
                {"seed": seed, "arm": arm, "tokens": tokens, "units": units}
                | losses
                | {"steps": results["steps"]}
            )


def loss(model: Path, folder: Path) -> float:
    """Nats a unit of a model on a folder of units."""
    speech_lm, units = SpeechLM.load(model), read_units(folder)
    use_packed(speech_lm.lm)
    documents = [speech_lm.vocabulary.document(some.ids) for some in units.by_name().values()]
    sums, counts = log_likelihoods(speech_lm.lm, documents)
    return float(-sums.sum() / counts.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("work/data-mix"))
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--quick", action="store_true", help="one seed")
    options = parser.parse_args()
    rows = []
    for seed in SEEDS[:1] if options.quick else SEEDS:
        for row in measure(prepare(options.data, options.work, seed), seed):
            rows.append(row)
            print(json.dumps(row), flush=True)
    table = []
    for tokens in TOKENS:
        for arm in ARMS:
            found = [row for row in rows if (row["arm"], row["tokens"]) == (arm, tokens)]
            spread = {
                name: [statistics.fmean(row[name] for row in found), float(np.std([r[name] for r in found]))]
                for name in VALIDATIONS
            }
            table.append({"tokens": tokens, "arm": arm} | spread)
            print(f"{tokens:8} {arm:26}" + "".join(f"{m:10.3f} ± {s:.3f}" for m, s in spread.values()))
    best = {name: min(table, key=lambda row: row[name][0])["arm"] for name in VALIDATIONS}
    record = {
        "name": "data_mix",
        "unit": "nats a unit on held-out speech: mean and standard deviation over seeds",
        "table": table,
        "best": best,
        "rows": rows,
        "gate": {"passed": all(np.isfinite(row[name]) for row in rows for name in VALIDATIONS)},
        "machine": machine(),
    }
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
