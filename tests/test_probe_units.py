import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

import reference
from browser import chromium
from slam.errors import ConfigError, InputError
from slam.labels import read_labels
from slam.metrics.unit_quality import abx, agreement, bigram_entropy, distances, entropy, perplexity
from slam.probe_units import PAGE_FILE, PROBE_FILE, ProbeUnitsConfig, probe_units
from slam.run import read_json, write_json_lines
from slam.units import Units, deduplicate, finish_units, read_units, write_shard

RATE = 25.0
small = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def counts_of(ids: Sequence[int]) -> np.ndarray:
    return np.bincount(np.array(ids, np.int64))


def naive_entropy(items: Sequence[Any]) -> float:
    return -sum(n / len(items) * math.log(n / len(items)) for n in Counter(items).values())


@given(ids=small)
def test_entropy_and_perplexity_are_those_of_the_shares(ids: list[int]) -> None:
    assert entropy(counts_of(ids)) == pytest.approx(naive_entropy(ids), abs=1e-12)
    assert perplexity(counts_of(ids)) == pytest.approx(math.exp(naive_entropy(ids)))


@given(documents=st.lists(small, min_size=1, max_size=5))
def test_the_bigram_entropy_is_a_mean_over_predecessors_and_spans_no_two_documents(
    documents: list[list[int]],
) -> None:
    pairs = [pair for one in documents for pair in itertools.pairwise(one)]
    expected = 0.0
    for first in {pair[0] for pair in pairs}:
        behind = [second for before, second in pairs if before == first]
        expected += len(behind) / len(pairs) * naive_entropy(behind)
    found = bigram_entropy([np.array(one, np.uint16) for one in documents], 6)
    assert found == pytest.approx(expected, abs=1e-9)


@given(rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=2, max_size=60))
def test_purities_and_pnmi_are_those_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    units, labels = np.array(rows).T
    found = agreement(units.astype(np.uint16), labels)
    if len(set(labels.tolist())) == 1:
        assert found is None
        return
    assert found is not None
    table = contingency_matrix(units, labels)
    assert found.label_purity == pytest.approx(table.max(axis=1).sum() / len(rows))
    assert found.cluster_purity == pytest.approx(table.max(axis=0).sum() / len(rows))
    expected = mutual_info_score(units, labels) / mutual_info_score(labels, labels)
    assert found.pnmi == pytest.approx(expected, abs=1e-9)
    assert found.num_frames == len(rows)


def test_units_that_are_the_labels_tell_all_of_them_and_one_unit_tells_nothing() -> None:
    labels = np.arange(60) % 4
    perfect, useless = agreement(labels * 3, labels), agreement(np.zeros(60, np.int64), labels)
    assert perfect is not None
    assert useless is not None
    assert (perfect.pnmi, perfect.label_purity, perfect.cluster_purity) == (pytest.approx(1), 1.0, 1.0)
    assert (useless.pnmi, useless.label_purity, useless.cluster_purity) == (pytest.approx(0), 0.25, 1.0)


@settings(deadline=None)
@given(rows=st.lists(small, min_size=1, max_size=70))
def test_distances_are_edits_over_the_longer_length(rows: list[list[int]]) -> None:
    found = distances([np.array(row, np.uint16) for row in rows])
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            expected = reference.edit_distance(one, other) / max(len(one), len(other))
            assert found[i, j] == pytest.approx(expected)


Triple = Callable[[str, str, str], bool]
TRIPLES: dict[str, Triple] = {
    "any": lambda a, b, x: True,  # noqa: ARG005
    "within": lambda a, b, x: a == b == x,
    "across": lambda a, b, x: a == b != x,
}


def brute_force(between: np.ndarray, labels: list[int], voices: list[int], mode: str) -> tuple[float, int]:
    """Every triple, one by one: mean over labels of the mean over the other labels; and how many."""
    seen: dict[tuple[int, int], list[float]] = {}
    everyone = range(len(labels))
    for a, b, x in itertools.product(everyone, everyone, everyone):
        if a == x or labels[a] != labels[x] or labels[b] == labels[x]:
            continue
        if TRIPLES[mode](*(voices[i] for i in (a, b, x))):
            near, far = between[a, x], between[b, x]
            seen.setdefault((labels[x], labels[b]), []).append(
                1.0 if near > far else 0.5 if near == far else 0
            )
    by_label: dict[int, list[float]] = {}
    for (label, _), errors in seen.items():
        by_label.setdefault(label, []).append(sum(errors) / len(errors))
    means = [sum(values) / len(values) for values in by_label.values()]
    return (sum(means) / len(means) if means else math.nan), sum(map(len, seen.values()))


@pytest.mark.parametrize("mode", TRIPLES)
@settings(deadline=None, max_examples=30)
@given(
    items=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=14),
    seed=st.integers(0, 99),
)
def test_abx_is_the_mean_over_all_triples(mode: Any, items: list[tuple[int, int]], seed: int) -> None:
    between = np.random.default_rng(seed).integers(0, 4, (len(items), len(items))).astype(float)
    between += between.T
    labels, voices = [label for label, _ in items], [voice for _, voice in items]
    expected, triples = brute_force(between, labels, voices, mode)
    found = abx(between, np.array(labels), np.array(voices), mode)
    if not triples:
        assert found is None
        return
    assert found is not None
    assert found.error.value == pytest.approx(expected)
    assert found.num_triples == triples
    assert found.error.low <= found.error.value <= found.error.high
    assert found.error.value == pytest.approx(np.mean(list(found.by_label.values())))


def test_abx_of_perfect_units_is_0_and_of_random_ones_about_one_half() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 9)
    perfect = abx(distances([np.array([label, label + 8], np.uint16) for label in labels]), labels)
    rows = [generator.integers(0, 30, 6).astype(np.uint16) for _ in labels]
    random = abx(distances(rows), labels)
    assert perfect is not None
    assert random is not None
    assert perfect.error.value == 0
    assert random.error.low < 0.5 < random.error.high
    assert random.error.low > 0.4
    assert random.error.high < 0.6
    same = abx(np.zeros((72, 72)), labels)
    assert same is not None
    assert same.error.value == 0.5


def write_units(folder: Path, recordings: dict[str, list[int]], num_units: int, rate: float = RATE) -> Path:
    """A folder as `slam encode` leaves it, of one unit a frame."""
    units = [deduplicate(np.array(frames), rate) for frames in recordings.values()]
    rows = [
        {"id": name, "seconds": len(frames) / rate, "num_units": len(one)}
        for (name, frames), one in zip(recordings.items(), units, strict=True)
    ]
    write_shard(folder, 0, units, rows)
    finish_units(
        folder, num_units=num_units, tokenizer="toy", fingerprint="0f", frame_rate=rate, num_shards=1
    )
    return folder


def spoken(seed: int, num_recordings: int = 12) -> tuple[dict[str, list[int]], list[dict[str, Any]]]:
    """Recordings of six words, each three units long in its own way, 80 ms a unit; and when they are said."""
    generator = np.random.default_rng(seed)
    frames: dict[str, list[int]] = {}
    labels = []
    for number in range(num_recordings):
        name = f"speaker{number % 3}-{number:02d}"
        frames[name] = [9, 9]
        for word in generator.integers(0, 6, 8).tolist():
            start = len(frames[name]) / RATE
            frames[name] += [word, word, (word + 1) % 6, (word + 1) % 6, word, word]
            end = len(frames[name]) / RATE
            labels.append({"id": name, "start": start, "end": end, "label": f"w{word}", "speaker": name[:8]})
            frames[name] += [9]
    return frames, labels


@pytest.fixture
def probed(tmp_path: Path) -> tuple[list[dict[str, Any]], Path]:
    """A good tokenizer beside one whose units say nothing, both against the same words."""
    frames, labels = spoken(0)
    generator = np.random.default_rng(1)
    noise = {name: generator.integers(0, 10, 2 * len(one)).tolist() for name, one in frames.items()}
    write_units(tmp_path / "good", frames, 12)
    write_units(tmp_path / "noise", noise, 10, rate=50.0)
    write_json_lines(tmp_path / "words.jsonl", labels)
    config = ProbeUnitsConfig(
        units={"good": tmp_path / "good", "noise <b>": tmp_path / "noise"},
        labels=tmp_path / "words.jsonl",
        abx_segments=6,
    )
    probe_units(config, tmp_path / "out")
    return read_json(tmp_path / "out" / PROBE_FILE), tmp_path / "out"


def test_words_are_found_in_good_units_and_not_in_noise(probed: tuple[list[dict[str, Any]], Path]) -> None:
    good, noise = probed[0]
    for mode in ("any", "within", "across"):
        assert good["abx"][mode]["value"] == 0
        assert noise["abx"][mode]["low"] < 0.5 < noise["abx"][mode]["high"]
        assert noise["abx"][mode]["value"] == pytest.approx(0.5, abs=0.1)
        assert good["abx"][mode]["num_triples"] == noise["abx"][mode]["num_triples"]
    assert good["abx"]["any"]["n"] == 6
    assert good["abx"]["num_segments"] == 36
    assert good["labels"]["pnmi"] > 0.5
    assert noise["labels"]["pnmi"] < 0.1
    assert good["labels"]["num_labels"] == noise["labels"]["num_labels"] == 12 * 8
    assert noise["labels"]["num_frames"] == 2 * good["labels"]["num_frames"] == 2 * 12 * 8 * 6
    assert good["labels"]["frames_without_label"] == 12 * (2 + 8)


def test_pnmi_of_a_folder_is_scikit_learns_over_the_labelled_frames(
    probed: tuple[list[dict[str, Any]], Path],
) -> None:
    frames, labels = spoken(0)
    pairs = []
    for name, units in frames.items():
        for place, unit in enumerate(units):
            middle = (place + 0.5) / RATE
            said = [
                row["label"] for row in labels if row["id"] == name and row["start"] <= middle < row["end"]
            ]
            pairs += [(unit, label) for label in said]
    units, names = zip(*pairs, strict=True)
    table = contingency_matrix(units, names)
    told = probed[0][0]["labels"]
    assert told["pnmi"] == pytest.approx(mutual_info_score(units, names) / naive_entropy(names))
    assert told["label_purity"] == pytest.approx(table.max(axis=1).sum() / len(pairs))
    assert told["cluster_purity"] == pytest.approx(table.max(axis=0).sum() / len(pairs))


def test_rates_and_entropies_are_those_of_the_units(probed: tuple[list[dict[str, Any]], Path]) -> None:
    good = probed[0][0]
    frames, _ = spoken(0)
    runs = [reference.run_lengths(one) for one in frames.values()]
    ids = [unit for one in runs for unit, _ in one]
    seconds = sum(map(len, frames.values())) / RATE
    assert good["units_per_second"] == pytest.approx(len(ids) / seconds)
    assert good["bits_per_second"] == pytest.approx(len(ids) / seconds * naive_entropy(ids) / math.log(2))
    assert good["unit_perplexity"] == pytest.approx(math.exp(naive_entropy(ids)))
    assert good["bigram_bits_per_second"] < good["bits_per_second"]
    assert (good["vocabulary"], good["vocabulary_used"]) == (12, 7)
    lasted = Counter(length for one in runs for _, length in one)
    assert {n: count for n, count in enumerate(good["durations"]) if count} == lasted
    assert good["mean_duration_ms"] == pytest.approx(1000 * seconds / len(ids))
    assert good["frequencies"] == [*sorted(Counter(ids).values(), reverse=True), 0, 0, 0, 0, 0]


def test_the_same_probe_writes_the_same_bytes(
    probed: tuple[list[dict[str, Any]], Path], tmp_path: Path
) -> None:
    config = ProbeUnitsConfig(
        units={"good": tmp_path / "good", "noise <b>": tmp_path / "noise"},
        labels=tmp_path / "words.jsonl",
        abx_segments=6,
    )
    probe_units(config, tmp_path / "again")
    assert reference.files_of(tmp_path / "again") == reference.files_of(probed[1])


class Cells(HTMLParser):
    """The cells of a page's tables, by the first of their row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: dict[str, list[str]] = {}
        self._row: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag == "tr":
            self._row = []
        self._inside = tag in ("td", "th") or (self._inside and tag == "b")
        if tag in ("td", "th"):
            self._row.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag == "b"
        if tag == "tr":
            self.rows[self._row[0]] = self._row[1:]

    def handle_data(self, data: str) -> None:
        if self._inside:
            self._row[-1] += data


def test_the_page_shows_the_numbers_and_names_are_no_markup(
    probed: tuple[list[dict[str, Any]], Path],
) -> None:
    rows, out = probed
    page = (out / PAGE_FILE).read_text()
    cells = Cells(page).rows
    assert ["good", "noise <b>"] in cells.values()
    assert "noise <b>" not in page
    assert cells["unit perplexity"] == [f"{row['unit_perplexity']:.1f}" for row in rows]
    assert cells["of it used"] == ["7 (58.3 %)", "10 (100.0 %)"]
    assert cells["labels used"] == ["96", "96"]
    noise = rows[1]["abx"]["within"]
    shown = cells["ABX error, within speakers (95 % interval)"]
    assert shown[0].startswith("0.0 (0.0\u2013")  # few labels, all right: Wilson's
    assert shown[1] == f"{100 * noise['value']:.1f} ({100 * noise['low']:.1f}\u2013{100 * noise['high']:.1f})"
    assert cells["w3"][1] == f"{100 * rows[1]['abx']['any']['by_label']['w3']:.1f}"


def test_a_browser_shows_the_page_and_asks_for_nothing_else(
    probed: tuple[list[dict[str, Any]], Path], tmp_path: Path
) -> None:
    with chromium(tmp_path / "profile") as tab:
        tab.open(probed[1] / PAGE_FILE, 1000, 900)
        assert tab.complaints == []
        assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
        assert tab.evaluate("document.querySelectorAll('svg').length") == 2
        assert tab.evaluate("document.documentElement.scrollWidth <= 1000")


def test_without_labels_there_is_no_word_of_them(toy_units: Path, tmp_path: Path) -> None:
    run = probe_units(ProbeUnitsConfig(units={"toy": toy_units}), tmp_path / "out")
    (row,) = read_json(tmp_path / "out" / PROBE_FILE)
    encoded = read_json(toy_units / "run.json")["results"]
    assert round(row["units_per_second"], 2) == encoded["units_per_second"]
    assert round(row["unit_perplexity"], 2) == encoded["unit_perplexity"]
    assert row["vocabulary_used"] == encoded["vocabulary_used"]
    assert "abx" not in row
    assert "ABX" not in (tmp_path / "out" / PAGE_FILE).read_text()
    assert run.results["probes"]["toy"]["unit_perplexity"] == encoded["unit_perplexity"]
    assert run.results["num_recordings_shared"] == 12


def test_units_without_durations_are_probed_without_them(toy_units: Path, tmp_path: Path) -> None:
    units = [Units(np.array(ids, np.uint16), None, RATE) for ids in ([1, 2, 1], [0, 2])]
    rows = [{"id": name, "num_units": len(one)} for name, one in zip("ab", units, strict=True)]
    write_shard(tmp_path / "kept", 0, units, rows)
    about = {"num_units": 3, "tokenizer": "toy", "fingerprint": "0f", "frame_rate": RATE, "num_shards": 1}
    finish_units(tmp_path / "kept", **about, durations=False)
    probe_units(ProbeUnitsConfig(units={"kept": tmp_path / "kept", "toy": toy_units}), tmp_path / "out")
    kept, toy = read_json(tmp_path / "out" / PROBE_FILE)
    assert kept["num_units"] == 5
    assert kept["unit_perplexity"] == pytest.approx(math.exp(naive_entropy("12102")))
    assert "units_per_second" not in kept
    assert "durations" not in kept
    cells = Cells((tmp_path / "out" / PAGE_FILE).read_text()).rows
    assert cells["mean duration in ms"] == ["", f"{toy['mean_duration_ms']:.1f}"]
    probe_units(ProbeUnitsConfig(units={"kept": tmp_path / "kept"}), tmp_path / "alone")
    write_json_lines(tmp_path / "l.jsonl", [{"id": "a", "start": 0, "end": 1, "label": "x"}])
    config = ProbeUnitsConfig(units={"kept": tmp_path / "kept"}, labels=tmp_path / "l.jsonl")
    with pytest.raises(InputError, match="carry no durations"):
        probe_units(config, tmp_path / "none")
    assert "How long units last" not in (tmp_path / "alone" / PAGE_FILE).read_text()


def test_labels_that_fit_nothing_are_counted(tmp_path: Path) -> None:
    write_units(tmp_path / "units", {"one": [1, 1, 2, 2, 3, 3], "two": [1, 2, 3]}, 4)
    (tmp_path / "labels.tsv").write_text(
        "id\tstart\tend\tlabel\n"
        "one\t0\t0.08\ta\n"
        "one\t0.08\t0.09\tb\n"  # between the middles of two frames
        "one\t0.1\t0.24\tb\n"
        "one\t5\t6\tb\n"  # behind the end
        "other\t0\t1\ta\n"
    )
    probe_units(ProbeUnitsConfig(units={"toy": tmp_path / "units"}, labels=tmp_path), tmp_path / "out")
    (row,) = read_json(tmp_path / "out" / PROBE_FILE)
    told = row["labels"]
    assert told["num_labels"] == 2
    assert told["labels_without_a_frame"] == 2
    assert told["labels_of_other_recordings"] == 1
    assert told["num_recordings"] == 1
    assert (told["num_frames"], told["frames_without_label"]) == (6, 0)
    assert told["pnmi"] == pytest.approx(1.0)
    assert row["abx"] == {"num_segments": 2, "kinds_of_label": 2}, "of no label are there two"


def test_the_segments_are_so_many_of_the_most_frequent_labels(tmp_path: Path) -> None:
    frames = {f"r{number}": [1, 2, 3, 4] * 5 for number in range(4)}
    write_units(tmp_path / "units", frames, 5)
    rows = [
        {"id": name, "start": place * 0.16, "end": (place + 1) * 0.16, "label": label}
        for name in frames
        for place, label in enumerate("aabbc")
    ]
    write_json_lines(tmp_path / "labels.jsonl", rows)
    config = ProbeUnitsConfig(
        units={"toy": tmp_path / "units"}, labels=tmp_path / "labels.jsonl", abx_labels=2, abx_segments=5
    )
    probe_units(config, tmp_path / "out")
    (row,) = read_json(tmp_path / "out" / PROBE_FILE)
    assert row["abx"]["num_segments"] == 10
    assert set(row["abx"]["any"]["by_label"]) == {"a", "b"}
    assert row["abx"]["any"]["value"] == 0.5, "all segments are the same four units"
    assert row["abx"]["any"]["num_triples"] == 2 * 5 * 4 * 5
    assert "within" not in row["abx"]
    assert row["labels"]["kinds_of_label"] == 3


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a\t0\t1\n", "labels.tsv:1: 3 cells"),
        ("a\t0\tone\tx\n", "row 1: start and end are seconds"),
        ("a\t1\t0.5\tx\n", "row 1: from 1 to 0.5 s; a label ends after it starts"),
        ("a\t0\tinf\tx\n", "a label ends after it starts"),
        ("a\tnan\t1\tx\n", "a label ends after it starts"),
        ("a\t0\t1\tx\na\t0.5\t2\ty\n", "a: 'x' and 'y' overlap at 0.5 s"),
        ("a\t0\t1\t\n", "row 1: has no 'label'"),
        ("\n", "holds no labels"),
    ],
)
def test_malformed_labels_are_refused(content: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text(content)
    with pytest.raises(InputError, match=line):
        read_labels(tmp_path / "labels.tsv")


def test_what_cannot_be_probed_is_refused(toy_units: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text(json.dumps({"id": "x", "start": 0, "end": 1, "label": "a"}))
    with pytest.raises(InputError, match="none of its recordings has labels; the first label is 'x'"):
        probe_units(
            ProbeUnitsConfig(units={"t": toy_units}, labels=tmp_path / "labels.jsonl"), tmp_path / "1"
        )
    with pytest.raises(InputError, match="holds no units"):
        probe_units(ProbeUnitsConfig(units={"t": tmp_path}), tmp_path / "2")
    with pytest.raises(InputError, match="holds no unit; its recordings are too short"):
        probe_units(ProbeUnitsConfig(units={"t": write_units(tmp_path / "e", {"a": []}, 3)}), tmp_path / "3")
    with pytest.raises(InputError, match=r"labels\.jsonl: cannot be read"):
        read_labels(tmp_path / "e")
    with pytest.raises(ConfigError, match="at least one folder"):
        ProbeUnitsConfig(units={})
    with pytest.raises(ConfigError, match="at least 2"):
        ProbeUnitsConfig(units={"t": toy_units}, abx_segments=1)


def test_a_folder_that_was_read_is_left_as_it_was(toy_units: Path, tmp_path: Path) -> None:
    before = reference.files_of(toy_units)
    probe_units(ProbeUnitsConfig(units={"toy": toy_units}), tmp_path / "out")
    assert reference.files_of(toy_units) == before
    assert len(read_units(toy_units)) == 12
