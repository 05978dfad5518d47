"""A stock causal LM and the vocabulary it speaks; TWIST: a text LM's body under a speech vocabulary."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from slam.architecture import Architecture
from slam.devices import best_device
from slam.errors import ConfigError, InputError, reason_of
from slam.hub import silence_retries
from slam.run import read_json, write_json
from slam.shards import TEXT_TOKENIZER
from slam.unit_tokenizer import save_unit_tokenizer
from slam.units import Vocabulary, check_spoken

Initialization = Literal["twist", "random"]
Embeddings = Literal["moments", "rows"]

ABOUT_FILE = "slam.json"
_THETA_TOLERANCE = 1e-3

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
silence_retries()


@dataclass(frozen=True)
class SpeechLM:
    """A causal LM and the vocabulary it speaks."""

    lm: PreTrainedModel
    vocabulary: Vocabulary
    tokenizer: str  # name of the speech tokenizer
    tokenizer_fingerprint: str
    training: tuple[Mapping[str, Any], ...] = ()  # the runs that made it, the first one first

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write a stock checkpoint with its tokenizer, which the Auto classes load, and `slam.json`.

        A model of text brings its own tokenizer, which is not written here.
        The files go to a folder beside their place first, so that a full disk leaves none of them cut short.

        Args:
            folder: where to.
            weights: the whole weights, where those of `lm` are divided among processes.
        """
        self.lm.set_attn_implementation("sdpa")
        partial = folder / ".partial"
        try:
            self.lm.save_pretrained(partial, state_dict=None if weights is None else dict(weights))
            _state_rotation(partial / "config.json")
            if not self.tokenizer.startswith(TEXT_TOKENIZER):
                save_unit_tokenizer(partial, self.vocabulary)
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
                "training": list(self.training),
            },
        )

    @classmethod
    def load(cls, folder: Path) -> "SpeechLM":
        """Read what `save` wrote, in fp32, on the best device.

        Raises:
            InputError: the folder is not a speech language model of ours.
        """
        about = read_about(folder)
        lm = load_lm(str(folder))
        check_built(lm, about.vocabulary)
        return cls(lm, about.vocabulary, about.tokenizer, about.tokenizer_fingerprint, about.training)

    def check_tokenizer(self, name: str, fingerprint: str, where: Path) -> None:
        """Refuse units of another tokenizer.

        Raises:
            MismatchError: the fingerprints differ.
        """
        check_spoken((name, fingerprint), (self.tokenizer, self.tokenizer_fingerprint), where)


def refuse_text(tokenizer: str, folder: Path) -> None:
    """Refuse a model of text where a speech LM is wanted.

    Raises:
        InputError: it is one.
    """
    if tokenizer.startswith(TEXT_TOKENIZER):
        raise InputError(f"{folder}: is a language model of text ({tokenizer}); give a speech LM")


@dataclass(frozen=True)
class About:
    """What `slam.json` says of a speech LM."""

    vocabulary: Vocabulary
    tokenizer: str  # name of the speech tokenizer
    tokenizer_fingerprint: str
    training: tuple[Mapping[str, Any], ...]  # the runs that made it; empty where an older slam wrote it


def read_about(folder: Path) -> About:
    """What a speech LM speaks; its weights are not opened.

    Raises:
        InputError: the folder is not a speech language model of ours.
    """
    if not (folder / ABOUT_FILE).is_file():
        raise InputError(f"{folder}: holds no speech language model ({ABOUT_FILE} is missing)")
    about = read_json(folder / ABOUT_FILE)
    try:
        vocabulary = Vocabulary(about["num_units"], about["pad"], about["bos"], about["eos"])
        return About(
            vocabulary, about["tokenizer"], about["tokenizer_fingerprint"], tuple(about.get("training", ()))
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / ABOUT_FILE}: does not describe a speech LM ({reason_of(error)})"
        ) from None


def _state_rotation(path: Path) -> None:
    """Say how positions turn where transformers 4 looks for it too.

    Version 5 writes it inside `rope_parameters`, which version 4, and what is built on it, passes over
    without a word: it would take the family's defaults.
    """
    config = read_json(path)
    rope = config.get("rope_parameters") or {}
    if "rope_theta" not in rope:  # no rotary positions, or one base for each kind of layer
        return
    stated = {"rope_theta": rope["rope_theta"]}
    if (share := rope.get("partial_rotary_factor")) is not None:
        stated["partial_rotary_factor"] = share
        if config["model_type"] == "gpt_neox":
            stated |= {"rotary_pct": share, "rotary_emb_base": rope["rope_theta"]}
    if rope.get("rope_type", "default") != "default":
        stated["rope_scaling"] = {key: value for key, value in rope.items() if key not in stated}
    write_json(path, config | stated)


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
    embeddings: Embeddings | None = "moments",
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
        embeddings: with `twist`, how the vocabulary's embeddings start: `moments`, drawn with the mean and
            spread of the text's; `rows`, the text's first rows as they are (what the reference code does);
            None, the base's own, for it speaks this vocabulary already.
        architecture: sizes for `base=None`.
        context: the longest document in tokens.
        rope_theta: base of the rotary frequencies; None keeps the base's own.
        seed: decides every weight that is not the base's.

    Raises:
        InputError: the base cannot be loaded.
        ConfigError: the base's context is shorter than `context`, or a setting did not take.
    """
    torch.manual_seed(seed)
    config = _config(base) if base is not None else small_qwen2(architecture, context)
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
        if embeddings is not None:
            _swap_embeddings(lm, vocabulary.size, embeddings)
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


def small_qwen2(architecture: Architecture, context: int) -> Any:
    """The config of a model that starts from nothing."""
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
        raise InputError(f"{base}: no model that transformers can load ({reason_of(error)})") from None


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
        raise InputError(f"{base}: no causal LM that transformers can load ({reason_of(error)})") from None
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


@torch.no_grad()
def _swap_embeddings(lm: PreTrainedModel, size: int, embeddings: Embeddings) -> None:
    """Give `lm` rows for `size` tokens: fresh ones of its text rows' mean and spread, or the first."""
    moments = [(table.mean(dim=0), table.std(dim=0)) for table in _tables(lm)]
    lm.resize_token_embeddings(size, mean_resizing=False)
    if embeddings == "rows":
        return
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
