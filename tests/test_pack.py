import re
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from slam.errors import ConfigError, InputError, MismatchError
from slam.pack import PackConfig, pack
from slam.run import write_json_lines
from slam.shards import SPLITS, TokenShards, open_shards
from slam.stories import write_texts
from slam.units import Vocabulary, deduplicate, finish_units, read_units, write_shard


def documents_of(shards: TokenShards) -> list[tuple[int, ...]]:
    return [tuple(shards[index].tolist()) for index in range(len(shards))]


def units_folder(folder: Path, utterances: list[list[int]], fingerprint: str = "f" * 16) -> Path:
    units = [deduplicate(np.array(frames, int), 25.0) for frames in utterances]
    for index in range(0, len(units), 3):
        rows = [{"id": f"{folder.name}-{n}"} for n in range(index, min(index + 3, len(units)))]
        write_shard(folder, index // 3, units[index : index + 3], rows)
    finish_units(
        folder,
        num_units=50,
        tokenizer="t",
        fingerprint=fingerprint,
        frame_rate=25.0,
        num_shards=-(-len(units) // 3),
    )
    return folder


def text_folder(folder: Path, texts: list[str]) -> Path:
    write_json_lines(
        folder / "manifest.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(texts)]
    )
    return folder


def test_units_are_packed_into_documents_of_tokens(toy_units: Path, tmp_path: Path) -> None:
    units = read_units(toy_units)
    run = pack(PackConfig(train=(toy_units,), validation=(toy_units,)), tmp_path / "out")
    for split in SPLITS:
        shards = open_shards(tmp_path / "out", split)
        expected = [(1, *(int(unit) + 2 for unit in units[index].ids), 1) for index in range(len(units))]
        assert documents_of(shards) == expected
        assert shards.vocabulary == units.vocabulary
        assert shards.tokenizer_fingerprint == units.tokenizer_fingerprint
        assert run.results["splits"][split] == {
            "documents": len(units),
            "tokens": len(units.ids) + 2 * len(units),
            "empty_documents": 0,
        }


def test_folders_are_joined_in_order_and_empty_utterances_counted(tmp_path: Path) -> None:
    one = units_folder(tmp_path / "one", [[1, 1, 2], [], [3]])
    two = units_folder(tmp_path / "two", [[4], [5, 6, 6], [7], [8, 9]])
    run = pack(PackConfig(train=(one, two), validation=(two,)), tmp_path / "out")
    packed = documents_of(open_shards(tmp_path / "out", "train"))
    assert packed == [(1, 3, 4, 1), (1, 5, 1), (1, 6, 1), (1, 7, 8, 1), (1, 9, 1), (1, 10, 11, 1)]
    assert run.results["splits"]["train"]["empty_documents"] == 1


def test_a_seeded_share_is_kept_apart_for_validation(tmp_path: Path) -> None:
    folder = units_folder(tmp_path / "u", [[n % 50, n // 50] for n in range(400)])
    split = {}
    for seed, share in ((0, 0.25), (1, 0.25), (0, 0.001)):
        out = tmp_path / f"out-{seed}-{share}"
        pack(PackConfig(train=(folder,), validation_share=share, seed=seed), out)
        parts = [documents_of(open_shards(out, name)) for name in SPLITS]
        assert len(parts[0]) + len(parts[1]) == 400
        assert len({*parts[0], *parts[1]}) == 400
        split[seed, share] = parts
    assert 60 <= len(split[0, 0.25][1]) <= 140
    assert len(split[0, 0.001][1]) >= 1
    assert split[0, 0.25][1] != split[1, 0.25][1]
    again = tmp_path / "again"
    pack(PackConfig(train=(folder,), validation_share=0.25, seed=0), again)
    assert documents_of(open_shards(again, "validation")) == split[0, 0.25][1]


def test_folders_of_different_tokenizers_are_refused(tmp_path: Path) -> None:
    one = units_folder(tmp_path / "one", [[1], [2]])
    other = units_folder(tmp_path / "other", [[1], [2]], fingerprint="0" * 16)
    for train, validation in (((one, other), ()), ((one,), (other,))):
        with pytest.raises(
            MismatchError, match=rf"{other}: encoded by t 0+, .*one by t f+; use one tokenizer"
        ):
            pack(PackConfig(train=train, validation=validation), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_units_and_text_are_not_packed_together(tmp_path: Path) -> None:
    units = units_folder(tmp_path / "units", [[1], [2]])
    text = text_folder(tmp_path / "text", ["a b", "c"])
    with pytest.raises(MismatchError, match="some folders hold units and some text"):
        pack(PackConfig(train=(units,), validation=(text,)), tmp_path / "out")


def stories() -> list[str]:
    return [text.text for text in write_texts("stories", 60, split="train", seed=0)]


@pytest.mark.parametrize("way", ["words", "bpe"])
def test_packed_text_reads_back_as_it_was(way: str, tmp_path: Path) -> None:
    texts = [*stories(), 'What? "No," he said: 42 cafés… <s> <pad>']
    folder = text_folder(tmp_path / "text", texts)
    config = PackConfig(train=(folder,), validation=(folder,), text_tokenizer=way, text_vocabulary=600)
    pack(config, tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    shards = open_shards(tmp_path / "out", "train")
    assert len(shards) == len(texts)
    assert shards.vocabulary.size == tokenizer.get_vocab_size() <= 600
    assert shards.tokenizer == f"text-{way}"
    for text, document in zip(texts, documents_of(shards), strict=True):
        assert document[0] == document[-1] == 1
        assert all(token > 1 for token in document[1:-1])  # no text becomes a boundary or padding
        if way == "words":
            words = [tokenizer.id_to_token(token) for token in document[1:-1]]
            assert words == re.findall(r"\w+|[^\w\s]+", text)
        else:
            assert tokenizer.decode(list(document[1:-1]), skip_special_tokens=False) == text


def test_a_word_not_in_the_training_text_is_unknown(tmp_path: Path) -> None:
    train = text_folder(tmp_path / "train", ["the red fox", "the red dog"])
    validation = text_folder(tmp_path / "validation", ["the blue fox"])
    pack(PackConfig(train=(train,), validation=(validation,)), tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    (document,) = documents_of(open_shards(tmp_path / "out", "validation"))
    assert [tokenizer.id_to_token(token) for token in document] == ["<s>", "the", "<unk>", "fox", "<s>"]


def test_the_text_tokenizer_decides_the_fingerprint(tmp_path: Path) -> None:
    texts = [["one two", "two three"], ["one two", "two four"]]
    found = []
    for name, content in zip("abc", [*texts, texts[0]], strict=True):
        folder = text_folder(tmp_path / name, content)
        pack(PackConfig(train=(folder,), validation=(folder,)), tmp_path / f"{name}-out")
        found.append(open_shards(tmp_path / f"{name}-out", "train").tokenizer_fingerprint)
    assert found[0] == found[2] != found[1]


def test_the_vocabulary_of_words_keeps_to_its_size(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "text", stories())
    pack(PackConfig(train=(folder,), text_vocabulary=40), tmp_path / "out")
    shards = open_shards(tmp_path / "out", "train")
    assert shards.vocabulary == Vocabulary(38)
    assert int(shards.tokens.max()) < 40


@pytest.mark.parametrize("utterances", [[], [[]], [[], []], [[1]]])
def test_a_corpus_with_nothing_to_pack_gives_one_clear_error(
    utterances: list[list[int]], tmp_path: Path
) -> None:
    folder = units_folder(tmp_path / "u", utterances)
    with pytest.raises(InputError, match=r"(train|validation): there is nothing to pack"):
        pack(PackConfig(train=(folder,)), tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "holds no text"),
        ([{"text": ""}, {"text": " "}], "there is nothing to pack"),
        ([{"text": "a"}, {"audio": "a.wav"}], r'manifest.jsonl:2: has no "text"'),
    ],
)
def test_a_text_corpus_with_nothing_to_pack_gives_one_clear_error(
    rows: list[dict[str, str]], reason: str, tmp_path: Path
) -> None:
    write_json_lines(tmp_path / "t" / "manifest.jsonl", rows)
    with pytest.raises(InputError, match=reason):
        pack(PackConfig(train=(tmp_path / "t",)), tmp_path / "out")


def test_a_folder_of_neither_units_nor_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds neither units nor text"):
        pack(PackConfig(train=(tmp_path / "empty",)), tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"train": ()}, "train"),
        ({"validation_share": 0.0}, "validation_share = 0.0"),
        ({"validation_share": 1.0}, "validation_share = 1.0"),
        ({"text_vocabulary": 65_537}, "text_vocabulary = 65537"),
        ({"text_vocabulary": 100, "text_tokenizer": "bpe"}, "between 258 and"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        PackConfig(**{"train": (Path("x"),)} | settings)
