"""A speech LM's folder, or an exported one → a repository on the hub, with its model card, in one commit.

Only what makes the model goes there: weights, configs, tokenizer, `slam.json` and the card; never `run.json`,
which holds paths of this machine, nor logs and checkpoints.
"""

from pathlib import Path

from slam import hub
from slam.errors import ConfigError, InputError
from slam.model_card import CARD_FILE, CardFacts, model_card
from slam.run import fingerprint_of, read_json
from slam.shards import TEXT_TOKENIZER

_ABOUT_FILE = "slam.json"
_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    _ABOUT_FILE,
    "model.gguf",
    "model.onnx",
    "model.onnx.data",
)


def push(
    model: Path,
    repo: str,
    *,
    scores: Path | None = None,
    private: bool = False,
    facts: CardFacts | None = None,
) -> str:
    """Send `model` to the hub as `repo`; the repository is made if it is not there.

    Args:
        model: folder of a speech LM, or what `slam export` wrote; the latter brings its card.
        repo: owner/name.
        scores: folder that `slam evaluate` wrote on this model, for the card.
        private: make the repository for its owner's eyes only, if it is made.
        facts: what the card says that no file does.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: a card is there already, and something is said for one.
        InputError: there is no finished speech LM, or the hub refuses or cannot be reached.
        MismatchError: the scores are of other models.
    """
    if not (model / _ABOUT_FILE).is_file():
        raise InputError(f"{model}: holds no speech language model ({_ABOUT_FILE} is missing)")
    if str(read_json(model / _ABOUT_FILE).get("tokenizer")).startswith(TEXT_TOKENIZER):
        raise InputError(f"{model}: is a language model of text; give a speech LM")
    fingerprint_of(model)  # which refuses a run that has not finished
    files: dict[str, Path | bytes] = {
        path.name: path for pattern in _FILES for path in sorted(model.glob(pattern))
    }
    if (model / CARD_FILE).is_file():
        if scores is not None or facts is not None:
            raise ConfigError(f"{model / CARD_FILE} is there; give scores, licence … to slam export instead")
        files[CARD_FILE] = model / CARD_FILE
    else:
        card = model_card(model, facts or CardFacts(title=repo.rpartition("/")[2]), scores)
        files[CARD_FILE] = card.encode()
    return hub.sent(files, repo, private=private, message=f"Add {repo.rpartition('/')[2]}, by slam push")
