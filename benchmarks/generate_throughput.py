"""Units generated a second: our decode loop against `transformers`' `generate`, with the same settings.

The model is a Qwen2 of 10 M parameters with random weights (`--parameters 358` for the paper's size), prompts
are of uneven length around 75 tokens (3 seconds), and each continuation has 150 units, for no row may end
early. `generate` is called as its documents say: one batch, padded on the left, its own cache. Ours is the
path of `slam generate`.

The gate: greedy continuations of both are identical in fp32, whatever the batch.
"""

import argparse
from typing import Any

import numpy as np
import torch
import transformers
from side_by_side import finish, interleaved, options_of, timed

from slam.decoding import continue_units
from slam.devices import best_device
from slam.model import SpeechLM
from slam.sampling import Sampling
from slam.units import Ids, Vocabulary

VOCABULARY = Vocabulary(500)
NEW = 150
PROMPT = 75  # tokens, on average
PAPER = Sampling()
GREEDY = Sampling(temperature=0.0, repetition_penalty=1.0)
SIZES = {
    10: {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6},
    358: {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}


def new_model(size: int) -> Any:
    sizes = {"num_key_value_heads": SIZES[size]["num_attention_heads"]} | SIZES[size]
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY.size, max_position_embeddings=2048, tie_word_embeddings=True, **sizes
    )
    torch.manual_seed(0)
    lm = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in lm.parameters():  # the usual 0.02 leaves all units about as likely
            if weight.ndim > 1:
                weight.mul_(2)
        lm.get_input_embeddings().weight[VOCABULARY.eos] = 0  # it never ends, so both do the same work
    return lm.to(best_device()).eval()


def prompts(number: int) -> list[Ids]:
    draw = np.random.default_rng(number)
    lengths = draw.integers(PROMPT * 2 // 3, PROMPT * 4 // 3, number)
    return [draw.integers(0, VOCABULARY.num_units, length).astype(np.uint16) for length in lengths]


def stock(lm: Any, some: list[Ids], sampling: Sampling) -> list[list[int]]:
    """`generate` as a user would call it: one padded batch."""
    rows = [torch.from_numpy(VOCABULARY.document(prompt)[:-1].astype(np.int64)) for prompt in some]
    tokens = torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=VOCABULARY.pad, padding_side="left"
    )
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(tokens.shape[1])[None] >= (tokens.shape[1] - lengths)[:, None]
    how: dict[str, Any] = {"do_sample": False}
    if not sampling.greedy:
        how = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k}
    lm.set_attn_implementation("sdpa")
    made = lm.generate(
        input_ids=tokens.to(lm.device),
        attention_mask=mask.long().to(lm.device),
        max_new_tokens=NEW,
        repetition_penalty=sampling.repetition_penalty,
        suppress_tokens=[VOCABULARY.pad, VOCABULARY.eos],
        pad_token_id=VOCABULARY.pad,
        eos_token_id=VOCABULARY.eos,
        **how,
    )[:, tokens.shape[1] :]
    return [VOCABULARY.ids(row).tolist() for row in made.cpu().numpy()]


def ours(speech_lm: SpeechLM, some: list[Ids], sampling: Sampling) -> list[list[int]]:
    found = continue_units(speech_lm, some, max_new_units=NEW, sampling=sampling, seeds=range(len(some)))
    return [one.ids.tolist() for one in found]


def compared(size: int, number: int, repeats: int) -> dict[str, Any]:
    """Speeds of one batch size, and whether greedy continuations are the same."""
    lm, other = new_model(size), new_model(size)  # the same weights; each keeps its attention
    speech_lm = SpeechLM(lm, VOCABULARY, "none", "none")
    some = prompts(number)
    same = ours(speech_lm, some, GREEDY) == stock(other, some, GREEDY)
    made = ours(speech_lm, some, PAPER)  # also warms up
    stock(other, some, PAPER)
    total = sum(map(len, made))

    def speed(work: Any) -> float:
        return total / timed(work)

    found = interleaved(
        lambda: speed(lambda: ours(speech_lm, some, PAPER)),
        lambda: speed(lambda: stock(other, some, PAPER)),
        repeats,
    )
    return found | {
        "greedy_identical": same,
        "all_as_long_as_asked": total == number * NEW,
        "milliseconds_a_step": round(1000 * number / found["ours"], 2),
        "milliseconds_a_step_of_generate": round(1000 * number / found["baseline"], 2),
    }


def arguments() -> argparse.Namespace:
    parser = options_of(__doc__ or "")
    parser.add_argument("--parameters", type=int, choices=sorted(SIZES), default=10, help="in millions")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    batches = [1, 16] + ([256] if torch.cuda.is_available() else [])
    each = {
        f"batch_{number}": compared(options.parameters, number, 3 if options.quick else 7)
        for number in batches
    }
    gate = {
        "passed": all(one["greedy_identical"] and one["all_as_long_as_asked"] for one in each.values()),
        "rule": "greedy continuations are identical, and sampled ones as long as asked",
    }
    about = {"parameters_in_millions": options.parameters, "prompt_tokens": PROMPT, "new_units": NEW}
    finish("generate_throughput", "units/s", each["batch_1"] | about | {"each": each}, gate, options.json)


if __name__ == "__main__":
    main()
