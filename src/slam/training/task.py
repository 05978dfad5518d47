"""What a training is of: which items each update sees, how they become a row, and the loss of a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from slam.packing import Fill, Packed
from slam.shards import Batches, share_out

X = TypeVar("X")  # what a loss needs beside the row

_ROW_GRANULE = 128  # tokens: kernels like their rows in such multiples
_DOCUMENT_TOKENS = 32  # a compiled row has room for documents of this mean length


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a validation means for the training."""

    stopped_by: str | None  # what says to stop, or None to go on
    keep: bool  # whether the weights of now are what is saved, should nothing better come


@dataclass(frozen=True, kw_only=True)
class Task(Generic[X]):
    """Items (documents, or pairs of them), and what is learnt from them."""

    order: Batches  # the items of each update
    costs: npt.NDArray[np.int64]  # [D] tokens of each item
    terms: npt.NDArray[np.int64]  # [D] how many terms of the summed loss each item has
    documents: int = 1  # in an item
    longest: int  # tokens in a document, at most
    row: Callable[
        [npt.NDArray[np.int64], Fill | None], tuple[Packed, X]
    ]  # items → a row, and what goes with it
    loss: Callable[[Tensor, Packed, X], tuple[Tensor, dict[str, Tensor]]]
    """Log-likelihoods of a row's next tokens, `[M]` → the summed loss, and summed figures to log."""
    validate: Callable[[Callable[[], None]], dict[str, float]]
    """A function to call now and then, which may raise to give up → figures."""
    judge: Callable[[Sequence[Mapping[str, float]]], Verdict] | None = None
    """Figures of all validations so far → whether to go on; None: until the budget is spent."""

    @property
    def step_tokens(self) -> float:
        """Tokens in an update, on average."""
        return float(self.costs.sum()) / self.order.num_batches

    def fill(self, micro_batch_tokens: int) -> Fill:
        """The shape of every row, where all must have one."""
        num_tokens = -(-(micro_batch_tokens + _ROW_GRANULE // 2) // _ROW_GRANULE) * _ROW_GRANULE
        num_items = max(1, num_tokens // (_DOCUMENT_TOKENS * self.documents))
        filler = -(-num_tokens // self.longest)
        return Fill(
            num_tokens=num_tokens, num_documents=num_items * self.documents + filler, longest=self.longest
        )

    def share_out(
        self, items: npt.NDArray[np.int64], micro_batch_tokens: int, fill: Fill | None, world_size: int
    ) -> list[npt.NDArray[np.int64]]:
        """Divide an update's items into micro-batches, as many for each of `world_size` processes."""
        most_items = None
        if fill is not None:
            most_items = (fill.num_documents - -(-fill.num_tokens // fill.longest)) // self.documents
        bins = share_out(
            self.costs[items],
            micro_batch_tokens if fill is None else fill.num_tokens,
            most_items=most_items,
            multiple=world_size,
        )
        return [items[numbers] for numbers in bins]
