import math
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("espeakng_loader", reason="slam[espeak] is not installed")

from nonword_collisions import frequent_words, sounds_of
from slam.errors import InputError
from slam.nonword_pairs import NonwordPairs
from slam.pair_layouts import Candidate
from slam.stories.nonwords import pattern_of
from slam.synthesizers.espeak import pronounce
from slam.word_lexicon import Lexicon, read_lexicon

ACCENTS = ("en-us", "en-gb-x-rp")


def found(lexicon: Lexicon, each: int | None, seed: int = 0, count: int | None = None) -> list[Candidate]:
    rows = NonwordPairs(lexicon, seed).pairs(count, each)
    return [one for *_, one in rows if isinstance(one, Candidate)]


def write_dictionary(path: Path, words: list[str]) -> Path:
    path.write_text(";;; a comment\n" + "".join(f"{word} K AE1 T\n{word}(2) K AH0 T\n" for word in words))
    return path


@pytest.fixture(scope="module")
def english(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Lexicon:
    """The words of the frequency list, as if the dictionary held no more: that is quicker."""
    words = sorted(frequent_words(shared_data / "text"))
    dictionary = write_dictionary(tmp_path_factory.mktemp("words") / "a.dict", words)
    return read_lexicon([shared_data / "text" / "word-frequencies.txt"], dictionary, ACCENTS)


@pytest.fixture(scope="module")
def made(english: Lexicon) -> tuple[NonwordPairs, list[Candidate]]:
    maker = NonwordPairs(english, 0)
    return maker, [one for *_, one in maker.pairs(None, 20) if isinstance(one, Candidate)]


@pytest.fixture
def pairs(made: tuple[NonwordPairs, list[Candidate]]) -> list[Candidate]:
    return made[1]


def test_nonwords_are_as_long_as_their_word_and_shaped_like_it(pairs: list[Candidate]) -> None:
    assert len(pairs) == 80
    for pair in pairs:
        word, nonword = pair.chosen.text, pair.rejected.text
        assert len(word) == len(nonword)
        assert pattern_of(word) == pattern_of(nonword)
        assert (pair.cluster, pair.bare, pair.prompt.text) == (word, True, "")
    assert len({pair.rejected.text for pair in pairs}) == len({pair.chosen.text for pair in pairs}) == 80


def test_no_nonword_is_a_word_or_sounds_like_one(
    pairs: list[Candidate], english: Lexicon, shared_data: Path
) -> None:
    nonwords = [pair.rejected.text for pair in pairs]
    assert not any(map(english.spells_a_word, nonwords))
    known = frequent_words(shared_data / "text")
    assert not known & set(nonwords)
    heard = set(sounds_of(known).values())
    alike = [nonword for nonword, sound in sounds_of(nonwords).items() if sound in heard]
    assert alike == []
    for accent in ACCENTS:
        assert not set(pronounce(known, accent)) & set(pronounce(nonwords, accent))
        long = [list(map(len, pronounce(side, accent))) for side in
                (nonwords, [pair.chosen.text for pair in pairs])]  # fmt: skip
        assert long[0] == long[1]


def test_frequencies_of_letters_do_not_tell_words_from_nonwords(
    pairs: list[Candidate], shared_data: Path
) -> None:
    for order in (1, 2, 3):
        counts: Counter[str] = Counter()
        for word in frequent_words(shared_data / "text"):
            counts.update(grams(word, order))
        won = 0.0
        for pair in pairs:
            own = Counter(grams(pair.chosen.text, order))
            rest = {gram: count - own[gram] for gram, count in counts.items()}  # the word is not known
            one, other = (likely(side.text, order, rest) for side in (pair.chosen, pair.rejected))
            won += 0.5 if abs(one - other) < 1e-9 else one > other
        assert abs(won / len(pairs) - 0.5) < 0.15, (
            order
        )  # nearly three standard deviations; with other counts


def likely(word: str, order: int, counts: dict[str, int]) -> float:
    return sum(math.log(counts.get(gram, 0) + 1) for gram in grams(word, order))


def grams(word: str, order: int) -> list[str]:
    padded = f"^{word}$" if order > 1 else word
    return [padded[at : at + order] for at in range(len(padded) - order + 1)]


def test_what_was_balanced_is_balanced(made: tuple[NonwordPairs, list[Candidate]]) -> None:
    maker, _ = made
    assert set(maker.accuracies) == {f"{of}_{n}gram" for of in ("letter", "sound") for n in (1, 2, 3)}
    assert all(abs(value - 0.5) <= 0.03 for value in maker.accuracies.values())


def test_no_nonword_is_made_twice(files: tuple[Path, Path]) -> None:
    words = ["mate", "gate", "date", "late", "mane", "lane", "line", "mine", "fine", "dine", "pike", "like"]
    words += ["mile", "file", "pile", "tile", "tale", "male", "pale", "sale", "same", "game", "lame", "time"]
    listed, dictionary = files
    listed.write_text("\n".join(words))
    maker = NonwordPairs(read_lexicon([listed], write_dictionary(dictionary, words), ("en-us",)), 0)
    made = [one.rejected.text for _ in range(4) for *_, one in maker.pairs(None, None)
            if isinstance(one, Candidate)]  # fmt: skip
    assert len(made) == len(set(made)) == len(maker.used) > 10


def test_at_most_so_many_words_are_drawn(english: Lexicon) -> None:
    assert len(found(english, None, count=5)) == 5


def test_words_are_counted_in_bands_of_their_rank(pairs: list[Candidate], english: Lexicon) -> None:
    rank = {one.word: one.rank for one in english.ranked}
    bounds = {"rank-1-2500": (1, 2500), "rank-2501-5000": (2501, 5000), "rank-5001-10000": (5001, 10_000),
              "rank-10001-": (10_001, 20_000)}  # fmt: skip
    assert Counter(pair.kind for pair in pairs) == dict.fromkeys(bounds, 20)
    for pair in pairs:
        least, most = bounds[pair.kind]
        assert least <= rank[pair.chosen.text] <= most


def test_the_seed_decides_and_the_order_is_the_list_s(english: Lexicon) -> None:
    one, same, other = (found(english, 1, seed) for seed in (0, 0, 1))
    assert one == same
    assert {pair.chosen for pair in one} != {pair.chosen for pair in other}
    rank = {ranked.word: ranked.rank for ranked in english.ranked}
    ranks = [rank[pair.chosen.text] for pair in one]
    assert ranks == sorted(ranks)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    words = ["table", "cable", "castle", "it's", "ox", "winter", "printer", "mister", "sister", "label"]
    listed = tmp_path / "words.txt"
    listed.write_text("".join(f"{word} {100 - n}\n" for n, word in enumerate([*words, "xylq"])))
    return listed, write_dictionary(tmp_path / "a.dict", words)


def test_words_that_cannot_be_asked_say_so(files: tuple[Path, Path]) -> None:
    listed, dictionary = files
    lexicon = read_lexicon([listed], dictionary, ("en-us",))
    why = {line: one for _, line, one in NonwordPairs(lexicon, 0).pairs(None, None)}
    assert [line for line, one in why.items() if one == "unfit_word"] == [4, 5, 11]  # it's, ox, xylq
    assert why[1] == "without_nonword"  # so few words have no neighbours to exchange for
    assert {one.word for one in lexicon.ranked} >= {"table", "it's", "xylq"}
    assert "it's" not in lexicon.known


def test_a_known_word_with_a_suffix_is_no_nonword(files: tuple[Path, Path]) -> None:
    lexicon = read_lexicon([files[0]], files[1], ("en-us",))
    assert all(map(lexicon.spells_a_word, ("table", "tables", "tabler", "wintering", "cabled", "mistery")))
    assert not any(map(lexicon.spells_a_word, ("tavle", "tavles", "wintring", "oxs")))


def test_bad_lists_are_named(files: tuple[Path, Path]) -> None:
    listed, dictionary = files
    listed.write_text("table 3\na b c\n")
    with pytest.raises(InputError, match=r"words\.txt:2: expected a word, and a count behind it or not"):
        read_lexicon([listed], dictionary, ACCENTS)
    dictionary.write_text(";;; nothing\n")
    listed.write_text("table 3\n")
    with pytest.raises(InputError, match=r"a\.dict: holds no words"):
        read_lexicon([listed], dictionary, ACCENTS)
