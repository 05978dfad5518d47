"""A text's words, or an utterance's units → the share of n-grams that it repeats within itself.

auto-BLEU is what Lakhotia et al. (2021, section 4.2) hold beside the perplexity of generated speech: a model
that says one phrase over and over is probable and useless. The Slam paper's auto-BLEU-2 counts bigrams.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from nltk.tokenize import NLTKWordTokenizer


def auto_bleu(tokens: "Sequence[Hashable] | npt.NDArray[Any]", order: int = 2) -> float:
    """Share of the n-grams of `tokens` that stand elsewhere among them too, between 0 and 1.

    Every occurrence counts: in `a b c a b` two bigrams of four are repeated. Occurrences may overlap, as in
    the Slam paper's code; in GSLM's own they may not, which differs only in runs such as `a a a`.

    Args:
        tokens: words or unit ids, `[N]`.
        order: the n of n-grams.

    Returns:
        The share; 0 where there are fewer than `order` tokens. The papers print it times 100.
    """
    content = tokens.tolist() if isinstance(tokens, np.ndarray) else tokens
    counts = Counter(zip(*(content[start:] for start in range(order)), strict=False))
    return sum(count for count in counts.values() if count > 1) / max(1, counts.total())


def words(text: str) -> list[str]:
    """The words and punctuation marks of `text`, by NLTK's word tokenizer; case is kept.

    A full stop is a token of its own only where it ends the text, as in the Slam paper's code.
    """
    return [str(word) for word in _tokenizer().tokenize(text)]


@cache
def _tokenizer() -> "NLTKWordTokenizer":
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()  # regular expressions alone: none of NLTK's data is needed
