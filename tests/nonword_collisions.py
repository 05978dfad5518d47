"""The word lists → `slam/stories/collisions.py`: candidate non-words that are words, or sound like one.

Run it after a change of the lexicon (`python tests/nonword_collisions.py`): other words give other
candidates. The tests hold the written list against `find_collisions`.
"""

import ctypes
import gzip
import os
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from slam.stories import collisions
from slam.stories.nonwords import MIN_LETTERS, candidates_of
from slam.stories.vocabulary import ALL_WORDS, HELD_OUT, NAMES
from slam.synthesizers.espeak import _fresh_library, _set_voice

_STRESS = re.compile("[',_|]")


def words_as_spelled(texts: Path) -> set[str]:
    """Every word of the CMU pronouncing dictionary and of the frequency list."""
    with gzip.open(texts / "cmudict.dict.gz", "rt", encoding="utf-8") as lines:
        spelled = {line.split(maxsplit=1)[0].split("(")[0] for line in lines}
    return spelled | frequent_words(texts)


def frequent_words(texts: Path) -> set[str]:
    """The 20,000 most frequent words."""
    return {line.split()[0] for line in (texts / "word-frequencies.txt").read_text("utf-8").splitlines()}


def sounds_of(words: Iterable[str]) -> dict[str, str]:
    """What eSpeak says for each word, without stress."""
    with _fresh_library() as library:
        _set_voice(library, "en-us")
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        sounds = {}
        for word in words:
            text = ctypes.c_char_p(word.encode())
            spoken = library.espeak_TextToPhonemes(ctypes.byref(text), 1, 0)
            sounds[word] = _STRESS.sub("", spoken.decode())
        return sounds


def find_collisions(texts: Path) -> set[str]:
    """Every candidate of every word that may be asked for which is, or sounds like, a word."""
    candidates = {c for word in HELD_OUT if len(word) >= MIN_LETTERS for c in candidates_of(word)}
    heard = set(sounds_of({*frequent_words(texts), *ALL_WORDS, *map(str.lower, NAMES)}).values())
    alike = {candidate for candidate, sound in sounds_of(candidates).items() if sound in heard}
    return candidates & (words_as_spelled(texts) | alike)


def rewrite(texts: Path) -> None:
    """Put the collisions found into the module that lists them."""
    path = Path(collisions.__file__)
    listed = textwrap.fill(" ".join(sorted(find_collisions(texts))), width=100, break_on_hyphens=False)
    mark = '_LISTED: Final = """\n'
    head, _, tail = path.read_text("utf-8").partition(mark)
    after = tail.partition('"""')[2]
    path.write_text(f'{head}{mark}{listed}\n"""{after}', "utf-8")


if __name__ == "__main__":
    shared = os.environ.get("SLAM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
    rewrite(Path(shared) / "text")
