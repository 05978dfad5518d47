"""A speech LM → a plain transformers folder with its tokenizer, in the type that is asked for."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slam.errors import InputError
from slam.exports import TORCH_NAMES, DtypeName, probe
from slam.model import ABOUT_FILE, SpeechLM
from slam.unit_tokenizer import unit_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write(speech_lm: SpeechLM, out: Path, dtype: DtypeName) -> dict[str, Any]:
    """Write `speech_lm` into `out`, and load it again as anybody would."""
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, TORCH_NAMES[dtype])
    ids = probe(speech_lm.vocabulary)
    before = logits(speech_lm.lm, ids)
    expected = {name: weight.to(kind) for name, weight in speech_lm.lm.state_dict().items()}
    if lost := [name for name, weight in expected.items() if not torch.isfinite(weight).all()]:
        raise InputError(f"{lost[0]}: holds numbers that {dtype} cannot; export it in fp32 or bf16")
    replace(speech_lm, lm=speech_lm.lm.to(kind)).save(out)
    again: PreTrainedModel = AutoModelForCausalLM.from_pretrained(out, dtype="auto", trust_remote_code=False)
    found = again.state_dict()
    for name, weight in expected.items():
        if not torch.equal(found[name], weight):
            raise InputError(f"{out / 'model.safetensors'}: {name} is not what was written")
    # in fp32, as it was: only what rounding the weights did is to be seen
    rounded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, trust_remote_code=False)
    return {
        "weights_equal": len(expected),
        "tokens_spelled_back": check_tokenizer(out, speech_lm),
        "largest_logit_difference": float((logits(rounded, ids) - before).abs().max()),
    }


def logits(lm: "PreTrainedModel", ids: torch.Tensor) -> torch.Tensor:
    """`[B, N]` → `[B, N, V]` fp32."""
    with torch.inference_mode():
        found: torch.Tensor = lm.train(mode=False)(input_ids=ids, use_cache=False).logits.float()
    return found


def check_tokenizer(out: Path, speech_lm: SpeechLM) -> int:
    """Spell every unit with the folder's own tokenizer, and back; gives how many.

    Raises:
        InputError: a token is not the unit that it should be.
    """
    from transformers import AutoTokenizer

    tokenizer, vocabulary = AutoTokenizer.from_pretrained(out, trust_remote_code=False), speech_lm.vocabulary
    spelled = "".join(unit_name(unit) for unit in range(vocabulary.num_units))
    expected = [vocabulary.bos, *range(vocabulary.offset, vocabulary.size)]
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    if (
        tokenizer(spelled).input_ids != expected
        or tokenizer.decode(expected, skip_special_tokens=True) != spelled
        or special != (vocabulary.pad, vocabulary.bos, vocabulary.eos)
    ):
        raise InputError(f"{out}: its tokenizer does not give the tokens that {ABOUT_FILE} says")
    return len(expected)
