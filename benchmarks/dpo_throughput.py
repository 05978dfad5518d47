"""Preference pairs tuned on a second: slam's update against TRL's `DPOTrainer`, side by side in one process.

TRL as it comes: padded batches and a live reference. Same model of 3 M parameters, same pairs in batches of
the same size, AdamW, fp32, one epoch; ours includes asking the reference. Pairs are stories of the grammar,
or those of a folder that `slam build-pairs` wrote: SWAG's differ more in length, so padding costs more there.
The gate: one batch gives the same initial loss and gradients of one direction (cosine > 0.999).
"""

import copy
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from side_by_side import REPEATS, finish, options_of
from tokenizers import Tokenizer, models, pre_tokenizers
from train_throughput import model
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from slam.build_pairs import TEXT_PAIRS_FILE
from slam.dpo import DpoConfig, Preferences, format_pairs, preference_task
from slam.packing import use_packed
from slam.pairs import Pair
from slam.run import read_json_lines
from slam.stories import write_pairs
from slam.training import METRICS_FILE, State
from slam.training.engine import ready
from slam.training.log import Log
from slam.training.loop import Training
from slam.training.signals import Stop
from slam.units import Units, Vocabulary

CONTEXT, BETA = 512, 0.1
COSINE, LOSS_TOLERANCE = 0.999, 1e-4
PARTS = ("prompt", "chosen", "rejected")
VOCABULARY = Vocabulary(100)


def units(text: str) -> Units:
    """A text's letters stand in for its units: about 5.5 units a word, as eSpeak's speech has."""
    return Units(np.frombuffer(text.encode(), np.uint8).astype(np.uint16) % 100, None, 25.0)


def pairs(count: int, folder: Path | None) -> list[Pair]:
    """Stories with a right and a contradicted ending, or the first pairs of a folder."""
    if folder is not None:
        rows = read_json_lines(folder / TEXT_PAIRS_FILE)[:count]
        return [
            Pair(row["id"], row["benchmark"], row["kind"], *(units(row[key]) for key in PARTS))
            for row in rows
        ]
    return [
        Pair(item.id, item.source, item.kind, units(item.prompt), units(item.chosen), units(item.rejected))
        for item in write_pairs("preferences", count, split="preferences", seed=0)
    ]


class Ours:
    """slam's update, the reference's answers included."""

    def __init__(self, lm: transformers.PreTrainedModel, data: Preferences, batch: int, folder: Path) -> None:
        self.lm, self.data, self.batch, self.folder = lm, data, batch, folder

    def __call__(self) -> float:
        """Pairs a second over one epoch."""
        lm = copy.deepcopy(self.lm)
        use_packed(lm)
        begin = time.perf_counter()
        config = settings(self.folder, self.batch)
        task = preference_task(lm, self.data, self.data.take([0]), config)
        training = Training(lm, config, task, self.folder, Stop())
        (self.folder / METRICS_FILE).unlink(missing_ok=True)
        with Log(self.folder, State(), peak_flops=None, wandb=None) as training.log:
            batches = task.order.starting_at(0)
            for _ in range(task.order.num_batches):
                training.update(next(batches), 0.5)
        return len(self.data.chosen) / (time.perf_counter() - begin)


def settings(folder: Path, batch: int) -> DpoConfig:
    return DpoConfig(
        model=folder, pairs=folder, budget="100000 steps", batch_pairs=batch, beta=BETA, context=CONTEXT
    )


class Theirs:
    """TRL's trainer over the same pairs."""

    def __init__(self, lm: transformers.PreTrainedModel, data: list[Pair], batch: int, folder: Path) -> None:
        self.lm, self.batch, self.folder = lm, batch, folder
        words = {"<pad>": 0, "<s>": 1} | {f"u{unit}": unit + 2 for unit in range(VOCABULARY.num_units)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))  # noqa: S106 - no password
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",  # noqa: S106 - no password
            bos_token="<s>",  # noqa: S106 - no password
            eos_token="<s>",  # noqa: S106 - no password
        )
        self.rows = Dataset.from_list(
            [
                {
                    "prompt": "<s>" + said(pair.prompt),
                    "chosen": said(pair.chosen) + " <s>",
                    "rejected": said(pair.rejected) + " <s>",
                }
                for pair in data
            ]
        )

    def trainer(self) -> Any:
        """A fresh trainer; what it prepares before training is not timed."""
        args = TrlConfig(
            output_dir=str(self.folder), beta=BETA, per_device_train_batch_size=self.batch,
            num_train_epochs=1, report_to="none", use_cpu=True, bf16=False, max_length=None,
            disable_tqdm=True, activation_checkpointing=False, dataloader_pin_memory=False,
            save_strategy="no", logging_strategy="no", learning_rate=5e-5,
        )  # fmt: skip
        lms = [copy.deepcopy(self.lm) for _ in range(2)]
        return DPOTrainer(
            model=lms[0],
            ref_model=lms[1],
            args=args,
            train_dataset=self.rows,
            processing_class=self.tokenizer,
        )

    def __call__(self) -> float:
        """Pairs a second over one epoch."""
        trainer = self.trainer()
        begin = time.perf_counter()
        trainer.train()
        return len(self.rows) / (time.perf_counter() - begin)


def said(some: Units) -> str:
    return "".join(f" u{unit}" for unit in some.ids)


def gate(lm: transformers.PreTrainedModel, data: Preferences, theirs: Theirs, folder: Path) -> dict[str, Any]:
    """The same first batch: loss and gradients."""
    trainer = theirs.trainer()
    trainer.train_dataset = trainer.train_dataset.select(range(theirs.batch))
    (batch,) = trainer.get_train_dataloader()
    trainer.model.eval()
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()
    own = copy.deepcopy(lm)
    use_packed(own)
    config = settings(folder, theirs.batch)
    engine = ready(own, config, preference_task(own, data, data.take([0]), config))
    loss = float(engine.gradients(engine.micro_batches(np.arange(theirs.batch)), theirs.batch)["loss"])
    gradients = dict(trainer.model.named_parameters())
    one, other = (
        torch.cat([weight.double().flatten() for weight in weights])
        for weights in (
            [w.grad for _, w in own.named_parameters()],
            [gradients[name].grad for name, _ in own.named_parameters()],
        )
    )
    difference = abs(loss - float(expected.detach())) / loss
    cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    return {
        "passed": difference < LOSS_TOLERANCE and cosine > COSINE,
        "loss_relative_difference": difference,
        "gradient_cosine": cosine,
    }


def main() -> None:
    parser = options_of(__doc__ or "")
    parser.add_argument("--pairs", type=Path, help="a folder of slam build-pairs, instead of stories")
    parser.add_argument("--batch", type=int, default=16, help="pairs in an update")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    some = pairs(64 if options.quick else 192, options.pairs)
    data = format_pairs(some, VOCABULARY, CONTEXT)
    lm = model(VOCABULARY)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs, ours = (
            Theirs(lm, some, options.batch, folder / "trl"),
            Ours(lm, data, options.batch, folder),
        )
        found_gate = gate(lm, data, theirs, folder)
        speeds = [(ours(), theirs()) for _ in range(REPEATS + 1)][1:]  # the first warms up
    ratios = [one / other for one, other in speeds]
    found = {
        "ours": statistics.median(one for one, _ in speeds),
        "baseline": statistics.median(other for _, other in speeds),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "pairs": len(some),
        "source": "stories of the grammar" if options.pairs is None else "a folder of slam build-pairs",
        "batch_pairs": options.batch,
        "mean_prompt_tokens": float(np.mean(data.skipped)),
        "mean_continuation_tokens": float(data.continuation_tokens().mean()),
        "num_parameters": sum(weight.numel() for weight in lm.parameters()),
    }
    finish("dpo_throughput", "pairs/s", found, found_gate, options.json)


if __name__ == "__main__":
    main()
