"""A model that has begun to learn the toy language, preferences about it, and settings of a short tuning."""

import toy_language
from slam.dpo import DpoConfig
from slam.pretrain import PretrainConfig, pretrain

CONTEXT = 32
# a tuning by preferences alone, of strides so long that they spoil what was learnt before
HARSH = {"learning_rate": 5e-3, "beta": 0.05, "schedule": "constant"}


def write_folders(root):
    """`root/lm`, pre-trained on `root/shards`, and `root/pairs`."""
    shards = toy_language.write_shards(
        root / "shards", toy_language.utterances(200), toy_language.utterances(9, 1)
    )
    pretrain(
        PretrainConfig(
            shards=shards,
            budget="25 steps",
            batch_tokens=300,
            context=CONTEXT,
            validations=1,
            learning_rate=5e-3,
            architecture=toy_language.ARCHITECTURE,
        ),
        root / "lm",
    )
    toy_language.write_pairs(root / "pairs", toy_language.counting_pairs(80))
    return root


def config_of(folders, **changes):
    """30 updates of 16 pairs of the 60 to train on; 20 are held out, four of their prompts continued."""
    chosen = {
        "model": folders / "lm",
        "pairs": folders / "pairs",
        "budget": "30 steps",
        "batch_pairs": 16,
        "learning_rate": 3e-3,
        "beta": 0.3,
        "held_out_share": 0.25,
        "validations": 5,
        "context": CONTEXT,
        "samples": 4,
    }
    return DpoConfig(**chosen | changes)
