"""Published scores of speech language models, each with its source, and which benchmarks they are of."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import msgspec

# of percent, but for the perplexity and the judge's 1 to 5
METRICS = {
    "swuggy": "sWUGGY",
    "sblimp": "sBLIMP",
    "sblimp_macro": "sBLIMP, macro",
    "sblimp_micro": "sBLIMP, micro",
    "ssc": "Spoken StoryCloze",
    "tsc": "Topic StoryCloze",
    "genppl": "GenPPL",
    "auto_bleu_2": "auto-BLEU-2",
    "judge": "LLM judge, 1 to 5",
    "salmon_sentiment": "SALMon sentiment",
    "salmon_speaker": "SALMon speaker",
    "salmon_gender": "SALMon gender",
    "salmon_bg_domain": "SALMon background, domain",
    "salmon_bg_random": "SALMon background, random",
    "salmon_room": "SALMon room",
    "salmon_sentiment_alignment": "SALMon sentiment alignment",
    "salmon_bg_alignment": "SALMon background alignment",
}
# beginnings of the names that `slam import-benchmark` gives, in small letters, and what they are of
_OFFICIAL = {
    "swuggy-dev": ("swuggy",),
    "swuggy-test": ("swuggy",),
    "sblimp-dev": ("sblimp", "sblimp_macro", "sblimp_micro"),
    "sblimp-test": ("sblimp", "sblimp_macro", "sblimp_micro"),
    "ssc": ("ssc",),
    "tsc": ("tsc",),
    "salmon": tuple(name for name in METRICS if name.startswith("salmon")),
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """Scores of one model from one source."""

    model: str
    source: str  # paper or repository, and table
    scores: dict[str, float]  # a key of METRICS → value as printed
    parameters: str | None = None
    tokens: str | None = None
    note: str | None = None


def read_published() -> list[Published]:
    """All published scores, in the order of the data file (`published.json` of the package)."""
    content = resources.files("slam").joinpath("published.json").read_bytes()
    return msgspec.json.decode(content, type=list[Published])


def comparable(benchmarks: Sequence[str]) -> list[str]:
    """The published metrics that are of these benchmarks; sets in the style of one are not."""
    wanted = {metric for name in benchmarks for metric in _OFFICIAL.get(name.lower(), ())}
    return [metric for metric in METRICS if metric in wanted]
