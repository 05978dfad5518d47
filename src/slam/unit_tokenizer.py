"""A vocabulary of units → the files by which `AutoTokenizer` spells it: `<u3><u17>` ↔ tokens 5 and 19.

Units are added tokens of an empty byte-pair encoding, not words of a word-level model: transformers 5 gives
every `qwen2` its own byte-pair tokenizer whatever the files say, and added tokens are all that it keeps.
"""

from pathlib import Path

from slam.run import write_json
from slam.units import Vocabulary

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


def unit_name(unit: int) -> str:
    """How a unit is spelled: `<u17>`."""
    return f"<u{unit}>"


def special_names(vocabulary: Vocabulary) -> dict[int, str]:
    """Token → its name, of those that are no units; a beginning that is also the end is `<s>`."""
    names: dict[int, str] = {}
    for token, name in ((vocabulary.bos, "<s>"), (vocabulary.eos, "</s>"), (vocabulary.pad, "<pad>")):
        names.setdefault(token, name)
    return names


def token_names(vocabulary: Vocabulary) -> list[str]:
    """`[V]`: the name of every token, in order."""
    units = {unit + vocabulary.offset: unit_name(unit) for unit in range(vocabulary.num_units)}
    named = special_names(vocabulary) | units
    return [named[token] for token in range(vocabulary.size)]


def save_unit_tokenizer(folder: Path, vocabulary: Vocabulary) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`.

    A text gets the beginning token in front and no end, so that a model goes on with it; batches are padded
    on the left for the same reason. What is no unit, a blank say, is passed over.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    names, special = token_names(vocabulary), special_names(vocabulary)
    tokenizer = Tokenizer(models.BPE({name: token for token, name in enumerate(names)}, []))
    tokenizer.add_special_tokens([special[token] for token in sorted(special)])
    tokenizer.add_tokens(
        [AddedToken(name, normalized=False, special=False) for name in names[vocabulary.offset :]]
    )
    begin = special[vocabulary.bos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, vocabulary.bos)]
    )
    tokenizer.decoder = decoders.Fuse()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER_FILE))
    write_json(
        folder / TOKENIZER_CONFIG_FILE,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",  # a name that transformers 4 knows too
            "bos_token": begin,
            "eos_token": special[vocabulary.eos],
            "pad_token": special[vocabulary.pad],
            "unk_token": None,  # or a class with one of its own would add it, past the vocabulary
            "padding_side": "left",
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        },
    )
