"""Texts → the negative log-likelihood of their tokens under a text LM: what GenPPL is made of.

Each text goes through the model by itself, in fp32 and unpadded, so a text's numbers are its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from slam.errors import InputError, reason_of
from slam.run import read_json
from slam.shards import TEXT_TOKENIZER

ABOUT_FILE = "slam.json"  # of a model that slam trained


@dataclass(frozen=True)
class Likelihood:
    """How probable the scored tokens of a text are."""

    nll: float  # nats, the mean over `num_tokens`
    num_tokens: int
    was_cut: bool  # the text was longer than the model's context, and its end is not scored


@dataclass(frozen=True, eq=False)
class TextLM:
    """A causal LM of text and its tokenizer, both stock `transformers`."""

    lm: Any
    tokenizer: Any
    place: str  # folder or hub name
    opening: int | None = (
        None  # token that stands before every text, where the tokenizer does not put it there
    )

    @classmethod
    def load(cls, place: str) -> Self:
        """Read a folder, or a name on the hub, in fp32; no code of its own runs.

        Raises:
            InputError: there is no causal LM with a fast tokenizer.
        """
        from transformers import AutoTokenizer

        from slam.model import load_lm

        lm = load_lm(place).train(mode=False)
        if (Path(place) / ABOUT_FILE).is_file():
            return cls._of_ours(lm, Path(place))
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InputError(
                f"{place}: no tokenizer that transformers can load ({reason_of(error)})"
            ) from None
        if not tokenizer.is_fast:
            raise InputError(
                f"{place}: its tokenizer does not say which token is where; it has no tokenizer.json"
            )
        return cls(lm, tokenizer, place)

    @classmethod
    def _of_ours(cls, lm: Any, folder: Path) -> Self:
        """One that `slam pretrain` made: its tokenizer is a bare file, its documents begin with `<S>`."""
        from transformers import PreTrainedTokenizerFast

        about, path = read_json(folder / ABOUT_FILE), folder / "tokenizer.json"
        if not (str(about["tokenizer"]).startswith(TEXT_TOKENIZER) and path.is_file()):
            raise InputError(
                f"{folder}: speaks {about['tokenizer']}, and text is to be scored; give a text LM"
            )
        fast: Any = PreTrainedTokenizerFast
        return cls(lm, fast(tokenizer_file=str(path)), str(folder), int(about["bos"]))

    def score(self, text: str, start: int = 0) -> Likelihood | None:
        """The mean negative log-likelihood of the tokens of `text` that reach beyond its character `start`.

        The text is tokenized as the tokenizer does of itself. What it adds, as Llama's its beginning of text,
        is context alone. Where it adds nothing, the text's first token is: nothing stands before it.

        Returns:
            None where no token is left to be scored.

        Raises:
            InputError: the likelihood is not a number.
        """
        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if self.opening is not None:
            ids, offsets = [self.opening, *ids], [(0, 0), *offsets]
        longest = getattr(self.lm.config, "max_position_embeddings", None) or len(ids)
        scored = np.array([end > start for _, end in offsets[:longest]], bool)
        scored[:1] = False
        if not scored.any():
            return None
        values = self._nlls(ids[:longest])[scored[1:]]
        nll = float(values.mean())
        if not np.isfinite(nll):
            raise InputError(f"{self.place}: the likelihood of {text[:60]!r} is not a number; use another lm")
        return Likelihood(nll, int(scored.sum()), len(ids) > longest)

    def _nlls(self, ids: list[int]) -> npt.NDArray[np.float64]:
        """`[N]` tokens → `[N - 1]`, of each but the first, in nats."""
        import torch

        tokens = torch.tensor([ids], device=self.lm.device)
        with torch.inference_mode():
            logits = self.lm(input_ids=tokens, use_cache=False).logits[0, :-1].float()
            values = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
        return values.double().cpu().numpy()
