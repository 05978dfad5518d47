"""Units of speech whose words are few and known → its text: a small convolutional network and CTC.

Made by `slam fit-recognizer`, to find out what a listener would hear of units that a model wrote. It reads
unit ids alone, for such units carry no durations. A word is one label (Graves et al., 2006, with words for
phones), so it knows no word that it was not fitted on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from slam.audio import Audio
from slam.errors import InputError, reason_of
from slam.run import read_json, replacing, write_json
from slam.threads import one_thread
from slam.tokenizers import SpeechTokenizer, load_tokenizer
from slam.units import TOKENIZER_FOLDER, Ids, Units

if TYPE_CHECKING:
    import torch

ABOUT_FILE = "recognizer.json"
_WEIGHTS_FILE = "recognizer.safetensors"
_MARKS = re.compile(r"[\w'’-]*\w|[.!?]")  # noqa: RUF001 - the apostrophe of print
_BLANK = 0


def labels_of(text: str) -> list[str]:
    """The words of `text`, and the marks that end its sentences, as they are written."""
    return _MARKS.findall(text)


def words_of(text: str) -> list[str]:
    """The words of `text` in small letters, without marks: what word errors are counted in."""
    return [label.lower() for label in labels_of(text) if label not in ".!?"]


def network(num_units: int, num_labels: int, *, width: int, num_layers: int) -> "torch.nn.Module":
    """Embeddings, residual convolutions over seven units each, and a score of each label and the blank.

    Takes ids `[B, N]` and a mask `[B, N, 1]` of what is no padding; gives `[B, N, labels + 1]`.
    """
    import torch
    from torch import Tensor, nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(num_units + 1, width, padding_idx=num_units)
            self.convolutions = nn.ModuleList(
                nn.Conv1d(width, width, 7, padding=3) for _ in range(num_layers)
            )
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_layers))
            self.head = nn.Linear(width, num_labels + 1)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            hidden = self.embedding(ids) * mask
            for convolution, norm in zip(self.convolutions, self.norms, strict=True):
                heard = convolution(norm(hidden).mul(mask).transpose(1, 2)).transpose(1, 2)
                hidden = (hidden + torch.relu(heard)) * mask
            scores: Tensor = self.head(hidden)
            return scores

    return Network()


@dataclass(frozen=True, eq=False)
class UnitsCtc:
    """A fitted recogniser of one tokenizer's units."""

    network: Any  # as `network` makes it
    labels: tuple[str, ...]  # label 1 is the first of them
    tokenizer: SpeechTokenizer
    about: dict[str, Any]  # width, layers, and what was found out about it

    name = "units-ctc"

    @property
    def sample_rate(self) -> int:
        """Of the audio that its tokenizer hears, in Hz."""
        return self.tokenizer.sample_rate

    @classmethod
    def load(cls, source: str) -> Self:
        """Read what `save` wrote into the folder `source`.

        Raises:
            InputError: it is no such folder, or damaged.
            MismatchError: its tokenizer was changed.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(source)
        if not (folder / ABOUT_FILE).is_file():
            raise InputError(
                f"{folder}: holds no recognizer ({ABOUT_FILE} is missing); see slam fit-recognizer"
            )
        content = read_json(folder / ABOUT_FILE)
        tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
        try:
            labels, about = tuple(content["labels"]), dict(content["about"])
            made = network(
                tokenizer.num_units, len(labels), width=about["width"], num_layers=about["num_layers"]
            )
            made.load_state_dict(load_file(folder / _WEIGHTS_FILE))
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder}: a damaged recognizer ({reason_of(error)}); fit it again") from None
        return cls(made.train(mode=False), labels, tokenizer, about)

    def save(self, folder: Path) -> None:
        """Write `recognizer.json`, the weights and the tokenizer into `folder`."""
        from safetensors.torch import save_file

        self.tokenizer.save(folder / TOKENIZER_FOLDER)
        with replacing(folder / _WEIGHTS_FILE) as partial:
            save_file(self.network.state_dict(), partial)
        write_json(folder / ABOUT_FILE, {"labels": list(self.labels), "about": self.about})

    def transcribe(self, batch: Sequence[Audio]) -> list[str]:
        """What is said in each recording, by way of its units."""
        heard = [audio.resample(self.sample_rate) for audio in batch]
        units = self.tokenizer.encode([audio for audio in heard if len(audio.samples)])
        texts = iter(self.read_units(units))
        return [next(texts) if len(audio.samples) else "" for audio in heard]

    def read_units(self, batch: Sequence[Units]) -> list[str]:
        """What is said in each utterance; each goes through the network by itself."""
        with one_thread():
            return [self._read(units.ids) for units in batch]

    def _read(self, ids: Ids) -> str:
        import torch

        if not len(ids):
            return ""
        with torch.no_grad():
            tokens = torch.from_numpy(ids.astype(np.int64))[None]
            best = self.network(tokens, torch.ones(1, len(ids), 1)).argmax(-1)[0].tolist()
        kept = [
            one for one, before in zip(best, [_BLANK, *best], strict=False) if one not in (_BLANK, before)
        ]
        return (
            " ".join(self.labels[one - 1] for one in kept)
            .replace(" .", ".")
            .replace(" !", "!")
            .replace(" ?", "?")
        )
