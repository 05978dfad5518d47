"""Text as it was written → text as it is to be spoken: characters repaired, and if wanted numbers in words.

ftfy puts right what a wrong encoding, HTML or typesetting left in a text. NVIDIA's text normaliser (English
grammars compiled to finite-state machines) also writes out numbers, dates, amounts and abbreviations, which
synthesizers read in ways of their own.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from slam.errors import MissingExtraError

Normalization = Literal["none", "unicode", "spoken"]


@cache
def normalizer(name: Normalization) -> Callable[[str], str]:
    """What makes a text one to speak, on one line.

    Args:
        name: "none" leaves all but white space, "unicode" repairs characters, "spoken" also writes out
            numbers, dates, amounts and abbreviations in English words.

    Raises:
        MissingExtraError: "spoken" needs a package that is not installed.
    """
    if name == "spoken":
        return _spoken(_grammars())
    return {"none": _one_line, "unicode": _repaired}[name]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _repaired(text: str) -> str:
    import ftfy

    return _one_line(ftfy.fix_text(text))


def _spoken(grammars: Any) -> Callable[[str], str]:
    def spoken(text: str) -> str:
        """Sentence by sentence: the grammars' time grows faster than the text."""
        sentences = grammars.split_text_into_sentences(_repaired(text))
        return _one_line(
            " ".join(grammars.normalize(sentence, punct_post_process=True) for sentence in sentences)
        )

    return spoken


def _grammars() -> Any:
    """NeMo's English normaliser; its grammars take half a minute to compile and are kept in the cache."""
    try:
        from nemo_text_processing.text_normalization.normalize import Normalizer
    except ModuleNotFoundError:
        raise MissingExtraError(
            "normalization = 'spoken' is not installed: pip install 'slam[normalize]'"
        ) from None
    logging.getLogger("NeMo-text-processing").addFilter(_serious)  # it tells of each text
    cached = _cache_folder() / f"nemo-text-{version('nemo_text_processing')}-{version('pynini')}"
    if not cached.is_dir():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent, ignore_cleanup_errors=True) as partial:
            Normalizer(input_case="cased", lang="en", cache_dir=partial)
            with suppress(OSError):  # another process was first
                Path(partial).rename(cached)
    return Normalizer(input_case="cased", lang="en", cache_dir=str(cached))


def _serious(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slam"
