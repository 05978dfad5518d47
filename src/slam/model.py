"""A stock causal LM and the vocabulary it speaks; TWIST: a text LM's body under a speech vocabulary.

Nothing of `transformers` is subclassed: documents packed end to end run through the stock model with an
attention function of ours, registered under a name, that never lets one document see another.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from slam.architecture import Architecture
from slam.errors import ConfigError, InputError, MismatchError
from slam.run import read_json, write_json
from slam.units import Ids, Vocabulary

Initialization = Literal["twist", "random"]

ABOUT_FILE = "slam.json"
PACKED = "slam_packed"
_IGNORED = -100  # the target that cross-entropy leaves out
_THETA_TOLERANCE = 1e-3
_PACKING_TOLERANCE = 1e-2  # of the scores' spread: above TF32's rounding, below any leak seen
_CHOOSE = "choose another base, such as a Qwen, Llama, Pythia, OPT or GPT-2"

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Documents end to end: one row, no padding."""

    tokens: Tensor  # [1, M] int64
    positions: Tensor  # [1, M], counted from 0 in each document
    targets: Tensor  # [M], the next token of the same document; -100 at its end
    lengths: tuple[int, ...]  # [D] tokens in each document

    @property
    def num_tokens(self) -> int:
        """Tokens in all, M."""
        return sum(self.lengths)

    @property
    def weight(self) -> int:
        """Tokens predicted: all but each document's first."""
        return self.num_tokens - len(self.lengths)


def packed(documents: Sequence[Ids], device: torch.device | str = "cpu") -> Packed:
    """Lay documents of tokens end to end."""
    lengths = [len(document) for document in documents]
    flat = torch.from_numpy(np.concatenate(documents).astype(np.int64))
    targets = functional.pad(flat[1:], (0, 1), value=_IGNORED)
    targets[torch.tensor(lengths).cumsum(0) - 1] = _IGNORED
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Packed(
        tokens=flat[None].to(device),
        positions=positions[None].to(device),
        targets=targets.to(device),
        lengths=tuple(lengths),
    )


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - part of transformers' signature
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    document_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,  # what other backends want to know and what does not change the scores
) -> tuple[Tensor, None]:
    """Causal attention inside each document, by torch's fused kernel, one document at a time.

    Args:
        module: the attention layer.
        query: `[1, heads, M, width]`.
        key: `[1, key heads, M, width]`.
        value: `[1, key heads, M, width]`.
        attention_mask: unused; the documents' lengths say it all.
        scaling: factor on the scores.
        dropout: on the attention weights.
        document_lengths: tokens in each document, M in all.
        sliding_window: tokens that a layer may look back over; harmless while no document is longer.
        softcap: a bound on the scores, which the fused kernel does not know.

    Returns:
        `([1, M, heads, width], None)`, as `transformers` wants it.

    Raises:
        ConfigError: the layer wants something else than causal attention inside each document.
    """
    layer = type(module).__name__
    if document_lengths is None:
        raise ConfigError(
            f"{layer} does not hand document lengths on, so packing cannot keep documents apart"
        )
    if softcap is not None:
        raise ConfigError(f"{layer} caps its attention scores, which packed training does not support")
    lengths = list(document_lengths)
    if sliding_window is not None and max(lengths) > sliding_window:
        raise ConfigError(
            f"a document of {max(lengths)} tokens is longer than the window of {sliding_window} that {layer} "
            "attends in; use a shorter context"
        )
    outputs = [
        functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
        )
        for q, k, v in zip(*(torch.split(part, lengths, 2) for part in (query, key, value)), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register(PACKED, packed_attention)


def logits(lm: PreTrainedModel, batch: Packed) -> Tensor:
    """Next-token scores `[M, V]` of packed documents; lm must use the packed attention (`use_packed`)."""
    output = lm(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        use_cache=False,
        document_lengths=batch.lengths,
    )
    scores: Tensor = output.logits[0]
    return scores


def use_packed(lm: PreTrainedModel) -> None:
    """Let `lm` attend inside packed documents, and try it: each must score as it does alone.

    A family that ignores positions or document lengths, or attends in another way, would not fail but give
    wrong numbers; a few tokens show it.

    Raises:
        ConfigError: the model's family cannot be packed.
        InputError: its weights are broken.
    """
    family = type(lm).__name__
    # families name the attention of their layers under either of two names
    kinds = [
        *(getattr(lm.config, "layer_types", None) or ()),
        *(getattr(lm.config, "attention_layers", None) or ()),
    ]
    if {"local", "chunked_attention", "linear_attention"} & set(kinds):
        raise ConfigError(f"{family} does not attend to the whole of a document; {_CHOOSE}")
    size = lm.config.vocab_size
    documents = [np.arange(start, start + length) * 7 % size for start, length in ((3, 6), (11, 3), (5, 9))]
    training = lm.training
    lm.train(mode=False)
    try:
        with torch.no_grad():
            lm.set_attn_implementation("eager")
            alone = [
                lm(input_ids=torch.from_numpy(one)[None].to(lm.device), use_cache=False).logits[0]
                for one in documents
            ]
            lm.set_attn_implementation(PACKED)
            together = logits(lm, packed(documents, lm.device))
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{family} cannot be packed ({_first_line(error)}); {_CHOOSE}") from None
    lm.train(training)
    expected = torch.cat(alone)
    if not expected.isfinite().all():
        raise InputError(
            f"{lm.name_or_path or family}: its scores are not numbers, so its weights are broken"
        )
    if (together - expected).abs().max() > _PACKING_TOLERANCE * expected.std():
        raise ConfigError(f"{family} scores packed documents otherwise than single ones; {_CHOOSE}")


def token_log_likelihoods(lm: PreTrainedModel, batch: Packed) -> Tensor:
    """Log-probability of each token given those before it, `[M]` fp32; 0 where nothing is predicted."""
    return -functional.cross_entropy(
        logits(lm, batch).float(), batch.targets, ignore_index=_IGNORED, reduction="none"
    )


def document_sums(values: Tensor, lengths: Sequence[int], skipped: Sequence[int] | None = None) -> Tensor:
    """Sum `values` `[M]` over each document, `[D]`, from its target `skipped` on."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(values.device)
    if skipped is not None:
        offset = torch.cat([torch.arange(length) for length in lengths]).to(values.device)
        values = values * (offset >= torch.tensor(skipped, device=values.device)[owner])
    return torch.zeros(len(lengths), device=values.device, dtype=values.dtype).index_add(0, owner, values)


def by_length(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Numbers of documents, longest first, in groups of at most `most_tokens` tokens."""
    group: list[int] = []
    total = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if group and total + lengths[index] > most_tokens:
            yield group
            group, total = [], 0
        group.append(index)
        total += lengths[index]
    if group:
        yield group


def check_length(lm: PreTrainedModel, num_tokens: int) -> None:
    """Refuse what a model with a table of positions has no positions for; rotary positions have no end.

    Raises:
        InputError: the document is longer than the table.
    """
    longest = getattr(lm.config, "max_position_embeddings", None)
    rotary = any(name.endswith("inv_freq") for name, _ in lm.named_buffers())
    if longest is not None and num_tokens > longest and not rotary:
        raise InputError(
            f"a document of {num_tokens} tokens is longer than the {longest} positions that "
            f"{lm.name_or_path or type(lm).__name__} has; shorten it, or choose a base with rotary positions"
        )


@torch.no_grad()
def log_likelihoods(
    lm: PreTrainedModel,
    documents: Sequence[Ids],
    *,
    skipped: Sequence[int] | None = None,
    most_tokens: int = 8192,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed log-likelihood of each document and how many tokens were predicted.

    Args:
        lm: a model that uses the packed attention.
        documents: tokens of each document, boundaries included.
        skipped: targets at each document's start that do not count (a prompt), or None for none.
        most_tokens: in one forward pass.

    Returns:
        `(sums [D] float64 in nats, counts [D])`.

    Raises:
        InputError: a document is longer than the model has positions for.
    """
    device = lm.device
    check_length(lm, max(map(len, documents), default=0))
    sums, counts = np.zeros(len(documents)), np.zeros(len(documents), np.int64)
    training = lm.training
    lm.train(mode=False)
    for group in by_length([len(document) for document in documents], most_tokens):
        batch = packed([documents[index] for index in group], device)
        left_out = [skipped[index] for index in group] if skipped is not None else [0] * len(group)
        totals = document_sums(token_log_likelihoods(lm, batch), batch.lengths, left_out)
        sums[group] = totals.double().cpu().numpy()
        counts[group] = np.array(batch.lengths) - 1 - np.array(left_out)
    lm.train(training)
    return sums, counts


@dataclass(frozen=True)
class SpeechLM:
    """A causal LM and the vocabulary it speaks."""

    lm: PreTrainedModel
    vocabulary: Vocabulary
    tokenizer: str  # name of the speech tokenizer
    tokenizer_fingerprint: str

    def save(self, folder: Path) -> None:
        """Write a stock checkpoint that `AutoModelForCausalLM.from_pretrained` loads, and `slam.json`.

        The files go to a folder beside their place first, so that a full disk leaves none of them cut short.
        """
        self.lm.set_attn_implementation("sdpa")
        partial = folder / ".partial"
        try:
            self.lm.save_pretrained(partial)
            for path in partial.iterdir():
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        write_json(
            folder / ABOUT_FILE,
            {
                "num_units": self.vocabulary.num_units,
                "pad": self.vocabulary.pad,
                "bos": self.vocabulary.bos,
                "eos": self.vocabulary.eos,
                "tokenizer": self.tokenizer,
                "tokenizer_fingerprint": self.tokenizer_fingerprint,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> "SpeechLM":
        """Read what `save` wrote, in fp32, on the best device.

        Raises:
            InputError: the folder is not a speech language model of ours.
        """
        if not (folder / ABOUT_FILE).is_file():
            raise InputError(f"{folder}: holds no speech language model ({ABOUT_FILE} is missing)")
        about = read_json(folder / ABOUT_FILE)
        vocabulary = Vocabulary(about["num_units"], about["pad"], about["bos"], about["eos"])
        lm = load_lm(str(folder))
        check_built(lm, vocabulary)
        return cls(lm, vocabulary, about["tokenizer"], about["tokenizer_fingerprint"])

    def check_tokenizer(self, name: str, fingerprint: str, where: Path) -> None:
        """Refuse units of another tokenizer.

        Raises:
            MismatchError: the fingerprints differ.
        """
        if fingerprint != self.tokenizer_fingerprint:
            raise MismatchError(
                f"{where}: units of {name} {fingerprint}, but the model speaks "
                f"{self.tokenizer} {self.tokenizer_fingerprint}; encode with the model's tokenizer"
            )


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def load_lm(base: str) -> PreTrainedModel:
    """Load any causal LM of `transformers` in fp32, from a folder or by hub name; no code of its own runs.

    Raises:
        InputError: it cannot be found, or is not a causal LM.
    """
    return _on_best_device(_pretrained(base, _config(base)))


def new_lm(
    vocabulary: Vocabulary,
    *,
    base: str | None,
    initialization: Initialization,
    architecture: Architecture,
    context: int,
    rope_theta: float | None,
    seed: int,
) -> PreTrainedModel:
    """Build the model to be trained, in fp32, without dropout.

    Args:
        vocabulary: what its embeddings stand for.
        base: a text LM (folder or hub name), or None for a small Qwen2 of `architecture`.
        initialization: `twist` keeps the base's body; `random` takes only its architecture.
        architecture: sizes for `base=None`.
        context: the longest document in tokens.
        rope_theta: base of the rotary frequencies; None keeps the base's own.
        seed: decides every weight that is not the base's.

    Raises:
        InputError: the base cannot be loaded.
        ConfigError: the base's context is shorter than `context`, or a setting did not take.
    """
    torch.manual_seed(seed)
    config = _config(base) if base is not None else _small_qwen2(architecture, context)
    for name in list(config.to_dict()):
        if "drop" in name and isinstance(getattr(config, name, None), float):  # GPT-2 says attn_pdrop
            setattr(config, name, 0.0)
    if rope_theta is not None:
        # where the family has none, or one for each kind of layer, check_built says so
        config.rope_parameters = (getattr(config, "rope_parameters", None) or {}) | {"rope_theta": rope_theta}
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and context > longest:
        raise ConfigError(
            f"context {context} is longer than the {longest} tokens that {base} allows; "
            f"set context to {longest}"
        )
    if base is not None and initialization == "twist":
        lm = _pretrained(base, config)
        _swap_embeddings(lm, vocabulary.size)
    else:
        config.vocab_size = vocabulary.size
        config.pad_token_id = vocabulary.pad  # the base's own may lie outside the new vocabulary
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    for part in (lm.config, lm.generation_config):
        part.pad_token_id, part.bos_token_id, part.eos_token_id = (
            vocabulary.pad,
            vocabulary.bos,
            vocabulary.eos,
        )
    check_built(lm, vocabulary, rope_theta)
    return _on_best_device(lm)


def _small_qwen2(architecture: Architecture, context: int) -> Any:
    return transformers.Qwen2Config(
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_heads,
        num_key_value_heads=architecture.num_heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
    )


def _config(base: str) -> Any:
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{base}: no model that transformers can load ({_first_line(error)})") from None


def _pretrained(base: str, config: Any) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{base}: no causal LM that transformers can load ({_first_line(error)})") from None
    lm, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers fills them in with random numbers
        raise InputError(f"{base}: lacks {len(missing)} weights of a causal LM, the first {missing[0]}")
    built: PreTrainedModel = lm
    return built


def _on_best_device(lm: Any) -> PreTrainedModel:
    placed: PreTrainedModel = lm.to(best_device())
    return placed


def _tables(lm: Any) -> tuple[Tensor, Tensor]:
    """The token embeddings and the head, which may be one tensor, each `[V, width]`."""
    return lm.get_input_embeddings().weight, lm.get_output_embeddings().weight


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


@torch.no_grad()
def _swap_embeddings(lm: PreTrainedModel, size: int) -> None:
    """Give `lm` fresh rows for `size` tokens, drawn with the mean and spread of its text rows."""
    moments = [(table.mean(dim=0), table.std(dim=0)) for table in _tables(lm)]
    lm.resize_token_embeddings(size, mean_resizing=False)
    rows, head = _tables(lm)
    fresh = [rows] if lm.config.tie_word_embeddings else [rows, head]
    for table, (mean, spread) in zip(fresh, moments, strict=False):
        table.copy_(mean + spread * torch.randn_like(table))


def check_built(lm: PreTrainedModel, vocabulary: Vocabulary, rope_theta: float | None = None) -> None:
    """Hold what was built against what was asked for: a library upgrade may drop a setting silently.

    Raises:
        ConfigError: vocabulary, precision, tied embeddings or rotary base are not as asked.
    """
    rows, head = _tables(lm)
    if rows.shape[0] != vocabulary.size or head.shape[0] != vocabulary.size:
        raise ConfigError(f"the model has {rows.shape[0]} token embeddings, its vocabulary {vocabulary.size}")
    if lm.config.tie_word_embeddings and rows.data_ptr() != head.data_ptr():
        raise ConfigError("the model's embeddings should be tied to its head and are not")
    wrong = [name for name, weight in lm.named_parameters() if weight.dtype != torch.float32]
    if wrong:
        raise ConfigError(f"{len(wrong)} weights are not fp32, the first {wrong[0]}")
    if rope_theta is None:
        return
    frequencies = [buffer for name, buffer in lm.named_buffers() if name.endswith("inv_freq")]
    if not frequencies:
        raise ConfigError(f"rope_theta = {rope_theta:g}: {type(lm).__name__} has no rotary positions")
    for found in frequencies:
        expected = rope_theta ** (-torch.arange(len(found), device=found.device) / len(found))
        if not torch.allclose(found.float(), expected.float(), rtol=_THETA_TOLERANCE):
            raise ConfigError(f"rope_theta = {rope_theta:g} did not take in {type(lm).__name__}")
