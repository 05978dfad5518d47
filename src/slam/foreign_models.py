"""The layouts in which other toolkits keep speech LMs → a stock causal LM of ours, and its vocabulary.

* `speech_language_model` is slamkit's: the config of a stock model stands inside as `base_config`, and the
  weights' names begin with `lm.`. The toolkit loads the base by name first; here nothing but the config
  inside counts, for whatever the base has was overwritten by it.
* Stock models whose tokens are units: TWIST's, where `offset` in the config is the token of unit 0.

What a library's upgrade changes silently is asserted on what was built: rotary frequencies, vocabulary, ties.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from slam.errors import InputError, reason_of
from slam.model import check_built
from slam.run import read_json
from slam.units import Vocabulary

SLAMKIT = "speech_language_model"
_PREFIX = "lm."
_BUFFERS = (".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")  # kept by older versions
_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Foreign:
    """A checkpoint's config, as far as it is needed."""

    layout: str
    config: Mapping[str, Any]  # of the stock model
    offset: int | None  # token of unit 0, where the checkpoint says so
    base: str | None  # name of the text LM that it started from
    ignored: tuple[str, ...]  # what asked for code to be run


def read_foreign(folder: Path) -> Foreign:
    """Read `config.json`; no weights are opened.

    Raises:
        InputError: it is missing, or no layout that is known.
    """
    path = folder / "config.json"
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise InputError(f"{path}: names no model_type")
    inner: Any = content
    base = None
    if content["model_type"] == SLAMKIT:
        inner, base = content.get("base_config"), content.get("base_model_name")
        if not isinstance(inner, dict) or not isinstance(inner.get("model_type"), str):
            raise InputError(f"{path}: holds no base_config with a model_type, and no base is downloaded")
    if inner["model_type"] not in CONFIG_MAPPING:
        raise InputError(
            f"{path}: transformers has no model {inner['model_type']!r}, and code inside a checkpoint is "
            "never run"
        )
    ignored = [key for key in _CODE for part in (content, inner) if part.get(key)]
    ignored += sorted(one.name for one in folder.glob("*.py"))
    offset = content.get("offset")
    if offset is not None and (type(offset) is not int or offset < 0):
        raise InputError(f"{path}: offset = {offset!r}: is no token")
    layout = SLAMKIT if inner is not content else "stock"
    return Foreign(
        layout, inner, offset, base if isinstance(base, str) else None, tuple(dict.fromkeys(ignored))
    )


def built_foreign(foreign: Foreign, weights: Mapping[str, Tensor], where: Path) -> PreTrainedModel:
    """The stock model in fp32 with all of its weights, and what was built held against what was said.

    Raises:
        InputError: weights lack, are too many or have another shape, or a setting did not take.
    """
    if foreign.layout == SLAMKIT:
        if strange := sorted(name for name in weights if not name.startswith(_PREFIX)):
            raise InputError(f"{where}: {strange[0]} is no weight of an inner model, {_PREFIX}…")
        weights = {name.removeprefix(_PREFIX): weight for name, weight in weights.items()}
    buffers = {name: weight for name, weight in weights.items() if name.endswith(_BUFFERS)}
    weights = {name: weight for name, weight in weights.items() if name not in buffers}
    config = _config(foreign, weights, where)
    try:
        kind: Any = type(AutoModelForCausalLM.from_config(config, dtype=torch.float32))  # type: ignore[no-untyped-call]
        lm, found = kind.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{where}: its weights are not those of a {config.model_type} ({reason_of(error)})"
        ) from None
    for word, key in (("lacks", "missing_keys"), ("has strange", "unexpected_keys")):
        if names := sorted(found[key]):
            raise InputError(f"{where}: {word} weights, {len(names)}, the first {names[0]}")
    check_rotation(lm, foreign.config, buffers, where)
    built: PreTrainedModel = lm
    return built


def _config(foreign: Foreign, weights: Mapping[str, Tensor], where: Path) -> Any:
    """The stock config; the vocabulary is as large as the embeddings, whatever it says."""
    said = {key: value for key, value in foreign.config.items() if key not in (*_CODE, "offset")}
    said = {key: value for key, value in said.items() if value is not None or key != "rope_theta"}
    said |= {"dtype": None, "torch_dtype": None}
    rows = {
        len(weight)
        for name, weight in weights.items()
        if name.endswith(("embed_tokens.weight", "embed_in.weight", "wte.weight"))
    }
    if len(rows) == 1:
        said["vocab_size"] = rows.pop()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(said.get(name), int) and said[name] >= said.get("vocab_size", 0):
            said[name] = None  # of the text vocabulary that was there before
    try:
        return CONFIG_MAPPING[said["model_type"]].from_dict(said)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{where / 'config.json'}: cannot be meant ({reason_of(error)})") from None


def check_rotation(
    lm: PreTrainedModel, said: Mapping[str, Any], buffers: Mapping[str, Tensor], where: Path
) -> None:
    """Hold the rotary frequencies against the config, as either generation of transformers wrote it.

    Version 4 has `rope_theta` (GPT-NeoX also `rotary_emb_base`), version 5 `rope_parameters`.

    Raises:
        InputError: the config says no rotary base where the model turns, or what was built differs.
    """
    built = [buffer.float().cpu() for name, buffer in lm.named_buffers() if name.endswith("inv_freq")]
    if not built:
        return
    inside = said.get("rope_parameters") or said.get("rope_scaling") or {}
    theta = inside.get("rope_theta", said.get("rope_theta", said.get("rotary_emb_base")))
    if not isinstance(theta, int | float):
        raise InputError(f"{where / 'config.json'}: says no rotary base (rope_theta), and the model has one")
    kept = [buffer.float() for name, buffer in buffers.items() if name.endswith("inv_freq")]
    plain = inside.get("rope_type", inside.get("type", "default")) == "default"
    for found in built:
        formula = [float(theta) ** (-torch.arange(len(found)) / len(found))] if plain else []
        for expected in (*formula, *kept):
            if len(expected) != len(found) or not torch.allclose(found, expected, rtol=_TOLERANCE):
                raise InputError(
                    f"{where}: its rotary base {theta:g} did not take in {type(lm).__name__}; the model "
                    "would be another one"
                )


@dataclass(frozen=True)
class Order:
    """Which token of the checkpoint stands where in ours."""

    vocabulary: Vocabulary
    rows: Sequence[int]  # [V] token of the checkpoint
    num_left_out: int  # tokens of the checkpoint that ours has not

    @property
    def is_ours(self) -> bool:
        """Whether the checkpoint's order is ours already."""
        return not self.num_left_out and list(self.rows) == list(range(len(self.rows)))


def order_of(
    foreign: Foreign, num_rows: int, num_units: int, where: Path, *, padding: int | None, boundary: int | None
) -> Order:
    """Find padding, boundary and units among the checkpoint's `num_rows` tokens; ours are 0, 1, and from 2.

    Args:
        foreign: what the checkpoint says.
        num_rows: its token embeddings.
        num_units: of the speech tokenizer.
        where: the checkpoint, for errors.
        padding: its token that stands for nothing, if it does not say so.
        boundary: its token that opens and closes an utterance, if it does not say so.

    Raises:
        InputError: they are not all there, or overlap.
    """
    said = foreign.config
    pad = said.get("pad_token_id") if padding is None else padding
    begin = said.get("bos_token_id") if boundary is None else boundary
    end = said.get("eos_token_id") if boundary is None else boundary
    known = [token for token in (pad, begin, end) if isinstance(token, int) and 0 <= token < num_rows]
    offset = foreign.offset if foreign.offset is not None else max(known, default=-1) + 1
    units = range(offset, offset + num_units)
    if units.stop > num_rows or (foreign.offset is None and units.stop != num_rows):
        raise InputError(
            f"{where}: has {num_rows} tokens, units from {offset}; the tokenizer has {num_units} units"
        )
    begin, end = (begin if begin in known else end), (end if end in known else begin)
    if begin not in known or end not in known:
        raise InputError(f"{where}: does not say which token opens an utterance; give boundary")
    if pad not in known or pad in (begin, end):
        free = [token for token in range(num_rows) if token not in units and token not in (begin, end)]
        if not free:
            raise InputError(
                f"{where}: has no token for padding beside units and boundary; it cannot be used"
            )
        pad = free[0]
    specials = list(dict.fromkeys((pad, begin, end)))
    if lost := [token for token in specials if token in units]:
        raise InputError(
            f"{where}: token {lost[0]} is unit {lost[0] - offset}, and a special one by its config; give "
            "padding and boundary"
        )
    vocabulary = Vocabulary(
        num_units, pad=specials.index(pad), bos=specials.index(begin), eos=specials.index(end)
    )
    rows = [*specials, *units]
    return Order(vocabulary, rows, num_rows - len(rows))


@torch.no_grad()
def reorder(lm: PreTrainedModel, order: Order) -> None:
    """Give `lm` our vocabulary: the checkpoint's rows, in our order."""
    if not order.is_ours:
        rows = torch.tensor(list(order.rows))
        kept: Any = lm.get_input_embeddings()
        head: Any = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
        taken = [part.weight[rows.to(part.weight.device)].clone() for part in (kept, head)]
        bias = None if head.bias is None else head.bias[rows.to(head.bias.device)].clone()
        lm.resize_token_embeddings(len(rows), mean_resizing=False)
        kept, head = lm.get_input_embeddings(), lm.get_output_embeddings()  # type: ignore[no-untyped-call]
        for part, weight in zip((kept, head), taken, strict=True):
            part.weight.copy_(weight)
        if bias is not None:
            head.bias.copy_(bias)
    vocabulary = order.vocabulary
    for part in (lm.config, lm.generation_config):
        part.pad_token_id, part.bos_token_id, part.eos_token_id = (
            vocabulary.pad,
            vocabulary.bos,
            vocabulary.eos,
        )
    check_built(lm, vocabulary)
