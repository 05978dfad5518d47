"""A speech LM and prompts of units → continuations, a unit a step, by our own loop over the stock model.

Prompts go through the model end to end, without padding; from then on each row of a batch has its place in a
cache of fixed shape (`slam.kv_cache`). On CUDA a step, drawing included, is one graph. A row's random numbers
come from its own seed, so it goes on in the same way alone and in any batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from slam.attention import PACKED
from slam.drawing import NEVER, draw, filtered
from slam.errors import ConfigError, InputError
from slam.kv_cache import CACHED, KVCache
from slam.model import SpeechLM
from slam.packing import check_length, packed, use_packed
from slam.sampling import Sampling, uniforms
from slam.units import Ids, Vocabulary

_PREFILLED = 8192  # tokens of prompts in a pass
_CACHE_ON_CPU = 2 << 30  # bytes of keys and values; a batch too large for a core's cache gains nothing
_SHARE_OF_FREE = 0.5  # of an accelerator's free memory, for them
_ROWS_ON_CPU, _ROWS_ON_CUDA = 32, 256  # in a batch
_LOOK = 16  # steps between looks at which rows have ended, where to look is to wait
_DROPPED = 8  # rows are dropped when one in so many has ended: to drop is to copy the others
_EAGER_STEPS = 2  # before a graph is captured, so that libraries have set themselves up


@dataclass(frozen=True)
class Continuation:
    """What a model said after a prompt."""

    ids: Ids  # [N] units
    ended: bool  # by the model itself, not by the limit


def use_cached(lm: PreTrainedModel) -> None:
    """Let `lm` attend by way of a cache, and try that its family can.

    Raises:
        ConfigError: the model's family cannot be packed.
        InputError: its weights are broken.
    """
    if lm.config._attn_implementation != CACHED:  # noqa: SLF001 - there is no other way to ask
        if lm.config._attn_implementation != PACKED:  # noqa: SLF001 - the same
            use_packed(lm)
        lm.set_attn_implementation(CACHED)
    lm.train(mode=False)


def continue_units(
    speech_lm: SpeechLM,
    prompts: Sequence[Ids],
    *,
    max_new_units: int = 150,
    sampling: Sampling | None = None,
    seeds: Sequence[int],
    advance: Callable[[int], None] = lambda _: None,
) -> list[Continuation]:
    """Continue each prompt until the model ends it, or for `max_new_units`.

    Args:
        speech_lm: the model; it is left with the cached attention.
        prompts: unit ids of each, `[N]`, at least one.
        max_new_units: most units of a continuation.
        sampling: how units are drawn; None for the paper's way.
        seeds: of each prompt; a seed and a prompt decide a continuation, whatever is in the batch.
        advance: told how many continuations were finished since it was last called.

    Returns:
        One for each prompt, in their order.

    Raises:
        InputError: a prompt is empty, or longer with its continuation than the model has positions for.
        ConfigError: the model's family cannot be packed, or `max_new_units` is less than 1.
        MismatchError: a prompt holds units that the model does not know.
    """
    use_cached(speech_lm.lm)
    found: dict[int, Continuation] = {}
    documents = _documents(speech_lm, prompts, max_new_units)
    for group in _groups(speech_lm.lm, [len(one) for one in documents], max_new_units):
        batch = _Batch(
            speech_lm,
            [documents[index] for index in group],
            max_new_units=max_new_units,
            sampling=sampling or Sampling(),
            seeds=[seeds[index] for index in group],
        )
        for _ in batch.steps():
            pass
        found |= {group[row]: one for row, one in batch.finished.items()}
        advance(len(group))
    return [found[index] for index in range(len(prompts))]


def stream_units(
    speech_lm: SpeechLM,
    prompt: Ids,
    *,
    max_new_units: int = 150,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """The units of one continuation, each as it is drawn; all in all those of `continue_units`.

    Raises:
        InputError: the prompt is empty, or longer with its continuation than the model has positions for.
        ConfigError: the model's family cannot be packed, or `max_new_units` is less than 1.
        MismatchError: the prompt holds units that the model does not know.
    """
    use_cached(speech_lm.lm)
    batch = _Batch(
        speech_lm,
        _documents(speech_lm, [prompt], max_new_units),
        max_new_units=max_new_units,
        sampling=sampling or Sampling(),
        seeds=[seed],
    )
    return _units_of(batch, speech_lm.vocabulary)


def _units_of(batch: "_Batch", vocabulary: Vocabulary) -> Iterator[int]:
    """The units of a batch's only row, as they come."""
    for tokens in batch.steps():
        token = int(tokens[0])
        if token == vocabulary.eos:
            return
        if token >= vocabulary.offset:
            yield token - vocabulary.offset


def check_room(lm: PreTrainedModel, num_units: int, max_new_units: int) -> None:
    """Refuse a prompt that with its continuation is longer than the documents the model was trained on.

    Raises:
        InputError: it is.
    """
    context = getattr(lm.config, "max_position_embeddings", None)
    if context is not None and 1 + num_units + max_new_units > context:
        more = f" and {max_new_units} more" if max_new_units else ""
        raise InputError(
            f"a prompt of {num_units} units{more} is longer than the model's context of {context} tokens; "
            "give a shorter prompt (last_seconds), or ask for fewer units"
        )


def _documents(speech_lm: SpeechLM, prompts: Sequence[Ids], max_new_units: int) -> list[Ids]:
    """`<S>` and the units of each prompt."""
    if max_new_units < 1:
        raise ConfigError(f"max_new_units = {max_new_units}: must be at least 1")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {number}: holds no units; a prompt must last at least one frame")
    documents = [speech_lm.vocabulary.document(prompt)[:-1] for prompt in prompts]
    check_length(speech_lm.lm, max(map(len, documents), default=0) + max_new_units)
    return documents


def _groups(lm: PreTrainedModel, lengths: Sequence[int], max_new_units: int) -> Iterator[list[int]]:
    """Numbers of prompts of like length, as many as memory holds, longest first."""
    device = lm.device
    config = lm.config.get_text_config()
    # an upper bound where key heads are fewer than heads
    width = max(config.hidden_size, config.num_attention_heads * (getattr(config, "head_dim", None) or 0))
    bytes_each = 2 * config.num_hidden_layers * width * lm.dtype.itemsize
    room, most = _CACHE_ON_CPU, _ROWS_ON_CPU
    if device.type == "cuda":
        room, most = int(_SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]), _ROWS_ON_CUDA
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        rows = room // (bytes_each * (lengths[order[0]] + max_new_units))
        size = max(1, min(rows, most))
        yield order[:size]
        order = order[size:]


class _Batch:
    """Rows that are continued together. All that a step changes is changed in place, on the device."""

    def __init__(
        self,
        speech_lm: SpeechLM,
        documents: Sequence[Ids],
        *,
        max_new_units: int,
        sampling: Sampling,
        seeds: Sequence[int],
    ) -> None:
        self._lm, self._sampling, self._steps = speech_lm.lm, sampling, max_new_units
        self._vocabulary: Vocabulary = speech_lm.vocabulary
        self.finished: dict[int, Continuation] = {}
        self._numbers = list(range(len(documents)))  # of the rows that go on
        self._prompt_lengths = [len(one) for one in documents]
        device = self._lm.device
        longest = max(self._prompt_lengths)
        self._capacity = -(-(longest + max_new_units) // 8) * 8  # fused kernels ask for a multiple of 8
        history = np.zeros((len(documents), self._capacity), np.int64)
        for row, document in zip(history, documents, strict=True):
            row[: len(document)] = document
        self._documents = documents
        self._history = torch.from_numpy(history).to(device)
        self._lengths = torch.tensor(self._prompt_lengths, device=device)
        self._even = len(set(self._prompt_lengths)) == 1
        size = self._vocabulary.size
        self._seen = torch.zeros(len(documents), size, dtype=torch.bool, device=device)
        self._seen.scatter_(1, self._history[:, :longest], 1)
        self._seen[:, self._vocabulary.pad] = False  # it filled up what is shorter
        never = torch.arange(size) == self._vocabulary.pad
        self._never = never.to(device)
        self._uniforms = None
        if not sampling.greedy:
            self._uniforms = torch.from_numpy(uniforms(seeds, max_new_units)).to(device)
        self._made = torch.zeros(1, dtype=torch.long, device=device)  # tokens said so far
        self._ended = torch.zeros(len(documents), dtype=torch.bool, device=device)
        self._ones = torch.ones(len(documents), 1, dtype=torch.long, device=device)
        self._cache = KVCache(len(documents), self._capacity, device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def steps(self) -> Iterator[Tensor]:
        """Continue all rows; after each step, the last token of each row that goes on, `[B]`."""
        with torch.inference_mode():
            self._append(self._prefill())
        waits = self._lm.device.type != "cpu"
        eager = 0
        for made in range(1, self._steps + 1):
            yield self._last()
            if made == self._steps:
                break
            if not waits or made % _LOOK == 0:
                if self._drop_ended():
                    self._graph, eager = None, 0
                if not self._numbers:
                    return
            with torch.inference_mode():
                if self._lm.device.type != "cuda":
                    self._step(max(self._prompt_lengths) + made)
                elif eager < _EAGER_STEPS:
                    self._step(self._capacity)
                    eager += 1
                else:
                    self._replay()
        self._finish(range(len(self._numbers)))

    def _replay(self) -> None:
        """A step as one CUDA graph: no kernel waits for Python."""
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step(self._capacity)
        self._graph.replay()

    def _prefill(self) -> Tensor:
        """Scores of each row's next token, `[B, V]`, after its prompt."""
        scores = []
        for first, last in _passes(self._prompt_lengths):
            batch = packed(self._documents[first:last], self._lm.device)
            self._cache.expect(first, batch.lengths, batch.positions[0])
            ends = torch.tensor(batch.lengths).cumsum(0).to(self._lm.device) - 1
            output = self._lm(
                input_ids=batch.tokens,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=ends,
                document_lengths=batch.lengths,
                longest_document=max(self._prompt_lengths) + self._steps,
                kv_cache=self._cache,
            )
            scores.append(output.logits[0])
        self._cache.lengths += self._lengths
        return torch.cat(scores)

    def _step(self, end: int) -> None:
        """Score the last token of each row, of which none is longer than `end`, and append the next."""
        self._cache.grow(end=end, even=self._even and end < self._capacity)
        places = self._lengths[:, None] - 1
        output = self._lm(
            input_ids=self._history.gather(1, places),
            position_ids=places,
            attention_mask=self._ones,  # unused; without one GPT-2 looks for padding, and waits
            use_cache=False,
            kv_cache=self._cache,
        )
        self._append(output.logits[:, -1])

    def _append(self, scores: Tensor) -> None:
        """Draw each row's next token from its scores `[B, V]`."""
        scores = filtered(
            scores,
            self._sampling,
            history=self._history,
            lengths=self._lengths,
            seen=self._seen,
            never=self._never,
        )
        numbers = None if self._uniforms is None else self._uniforms.index_select(1, self._made)[:, 0]
        # of few units, all may have been said as often as is allowed; then there is nothing left but to end
        left = scores.amax(dim=-1) > NEVER
        tokens = torch.where(left, draw(scores, numbers), self._vocabulary.eos)[:, None]
        self._history.scatter_(1, self._lengths[:, None], tokens)
        self._seen.scatter_(1, tokens, 1)
        self._ended |= tokens[:, 0] == self._vocabulary.eos
        self._lengths += 1
        self._made += 1

    def _last(self) -> Tensor:
        return self._history.gather(1, self._lengths[:, None] - 1)[:, 0]

    def _drop_ended(self) -> bool:
        """Finish rows that have ended and go on without them; whether there were enough to do so."""
        if int(self._ended.sum()) * _DROPPED < max(1, len(self._numbers)):
            return False
        ended = self._ended.nonzero()[:, 0].tolist()
        self._finish(ended)
        rows = (~self._ended).nonzero()[:, 0]
        kept = rows.tolist()
        with torch.inference_mode():
            self._history, self._lengths, self._seen, self._ones, self._ended = (
                each[rows] for each in (self._history, self._lengths, self._seen, self._ones, self._ended)
            )
            if self._uniforms is not None:
                self._uniforms = self._uniforms[rows]
            self._cache.keep_rows(rows)
        self._numbers = [self._numbers[row] for row in kept]
        self._prompt_lengths = [self._prompt_lengths[row] for row in kept]
        return True

    def _finish(self, rows: Sequence[int]) -> None:
        """Read what these rows said."""
        said = self._history.cpu().numpy()
        made = int(self._made)
        eos = self._vocabulary.eos
        for row in rows:
            begin = self._prompt_lengths[row]
            tokens = said[row, begin : begin + made]
            ends = np.flatnonzero(tokens == eos)
            ended = bool(len(ends))
            ids = self._vocabulary.ids(tokens[: ends[0]] if ended else tokens)
            self.finished[self._numbers[row]] = Continuation(ids, ended)


def _passes(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First row and the row after the last of prompts that go through the model together."""
    first, total = 0, 0
    for row, length in enumerate(lengths):
        if row > first and total + length > _PREFILLED:
            yield first, row
            first, total = row, 0
        total += length
    yield first, len(lengths)
