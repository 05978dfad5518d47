"""The name of a GPU → its memory and what it could multiply. No torch here: recipes are read without it."""

import difflib
import re
from dataclasses import dataclass

from slam.errors import ConfigError


@dataclass(frozen=True)
class Card:
    """A GPU, from its maker's data sheet."""

    name: str
    memory_gib: float
    peak_flops: float  # dense bf16 products in FLOP/s with fp32 sums


CARDS = {
    card.name: card
    for card in (
        Card("A10", 24, 125e12),
        Card("A100", 40, 312e12),  # the smaller of two; the name alone promises no more
        Card("A100-80GB", 80, 312e12),
        Card("RTX A5000", 24, 111e12),
        Card("RTX A6000", 48, 155e12),
        Card("L4", 24, 121e12),
        Card("L40S", 48, 362e12),
        Card("RTX 3090", 24, 71e12),
        Card("RTX 4090", 24, 165e12),
        Card("RTX 5090", 32, 209e12),
        Card("RTX 6000 Ada", 48, 364e12),
        Card("H100", 80, 989e12),
        Card("H100 NVL", 94, 835e12),
        Card("H100 PCIe", 80, 756e12),
        Card("H200", 141, 989e12),
        Card("GH200", 96, 989e12),
        Card("B200", 180, 2250e12),
    )
}

# The share of the peak that training is taken to reach where nothing was measured: what the Slam paper's own
# day comes to, 1.4 B tokens (Table 3) of 2.26 GFLOP in 23.5 h (Table 4) of an A5000's 111 TFLOP/s.
ASSUMED_MFU = 0.33
USABLE = 0.95  # share of the memory that is left beside the driver's own


def find_card(name: str) -> Card:
    """The card of that name, whatever its case, or the only one whose name it ends ("a5000").

    Raises:
        ConfigError: there is none; the line names the nearest.
    """
    known = {card.lower(): card for card in CARDS}
    wanted = name.lower().strip()
    ending = [card for low, card in known.items() if low.split()[-1] == wanted]
    if wanted in known or len(ending) == 1:
        return CARDS[known.get(wanted) or ending[0]]
    near = difflib.get_close_matches(wanted, known, 1, cutoff=0.5)
    hint = f"did you mean {known[near[0]]!r}?" if near else f"known: {', '.join(CARDS)}"
    raise ConfigError(f"no GPU called {name!r} is known; {hint}")


def card_of(device_name: str) -> Card | None:
    """The card that a device's own name tells of, the longest name it holds; None where it is not known."""
    known = [card for card in CARDS if re.search(rf"\b{card}\b", device_name)]  # an L40 is no L4
    return CARDS[max(known, key=len)] if known else None
