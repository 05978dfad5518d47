import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from browser import chromium
from slam.errors import InputError
from slam.report import ReportConfig, report
from slam.run import read_json, read_json_lines, read_run
from toy_recipe import toy_run  # noqa: F401 - a fixture

HOSTILE = "<script>throw new Error('in')</script><img src=x onerror=\"throw new Error('in')\">&amp;"


class Read(HTMLParser):
    """What a browser would make of the page: its tags and the cells of its tables."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.rows, self._cell = [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join(self._cell.split()))
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data


def runs_of(folder):
    return {
        path.parent.name: path.parent
        for path in sorted(folder.glob("*/run.json"))
        if path.parent.name != "report"
    }


@pytest.fixture(scope="module")
def shown(toy_run, tmp_path_factory):  # noqa: F811
    """The toy's page in a browser: what it complained of, asked for and can play."""
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        page.open(toy_run / "report.html", 1100, 2400)
        sounds = page.evaluate(
            """Promise.all([...document.querySelectorAll('audio')].map(async audio => {
                audio.muted = true;
                if (audio.readyState < 1) await new Promise(done => {
                    audio.onloadedmetadata = audio.onerror = done; audio.load(); });
                const seconds = audio.duration;
                let refused = null;
                try { await audio.play(); await new Promise(done => audio.ontimeupdate = done); }
                catch (error) { refused = String(error); }
                const reached = audio.currentTime;
                audio.pause();
                return { ready: audio.readyState, seconds, refused, reached,
                         error: audio.error && audio.error.message };
            }))"""
        )
        layout = page.evaluate(
            """({ wide: document.documentElement.scrollWidth, seen: innerWidth,
                 drawings: [...document.querySelectorAll('svg')].map(one => one.clientWidth),
                 text: document.body.innerText })"""
        )
        picture = page.screenshot()
        return {
            "sounds": sounds,
            "layout": layout,
            "picture": picture,
            "complaints": page.complaints,
            "requests": page.requests,
        }


def test_the_page_opens_without_a_complaint_and_asks_nobody_for_anything(shown, toy_run):  # noqa: F811
    assert shown["complaints"] == []
    asked = [url for url in shown["requests"] if not url.startswith("data:")]
    assert asked == [(toy_run / "report.html").as_uri()]


def test_every_player_can_play(shown, toy_run):  # noqa: F811
    sounds = shown["sounds"]
    rows = read_json_lines(toy_run / "continuations" / "continuations.jsonl")
    assert len(sounds) == len(rows) == 6
    for sound in sounds:
        assert sound["error"] is None
        assert sound["refused"] is None
        assert sound["ready"] >= 1
        assert sound["reached"] > 0
    lasting = sorted(row["seconds"] for row in rows if row["model"] is not None)
    found = sorted(sound["seconds"] for sound in sounds)
    assert all(seconds > 0 for seconds in found)
    # an MP3 is padded to whole frames at both ends
    for seconds in lasting:
        assert any(abs(seconds - other) < 0.2 for other in found)


def test_the_page_fits_its_window_and_is_drawn(shown):
    layout = shown["layout"]
    assert layout["wide"] <= layout["seen"]
    assert len(layout["drawings"]) >= 3
    assert all(400 < width < 1000 for width in layout["drawings"])
    assert shown["picture"].startswith(b"\x89PNG")
    for word in ("Scores", "Listen", "Training", "What was run", "twist-dpo", "storycloze"):
        assert word in layout["text"]
    assert "undefined" not in layout["text"].lower()
    assert "{{" not in layout["text"]


def test_the_scores_on_the_page_are_those_of_the_table(toy_run):  # noqa: F811
    rows = Read((toy_run / "report.html").read_text()).rows
    scores = read_json(toy_run / "results.json")
    floors = read_json(toy_run / "scores" / "floors.json")
    heading = rows[0]
    assert heading[2:] == ["random", "twist", "twist-dpo", "length alone", "unigrams alone"]
    shown = {row[0]: row for row in rows[1:5]}
    plain = [score for score in scores if score["metric"] == "accuracy"]
    for score in plain:
        row = shown[score["benchmark"]]
        assert row[1] == str(score["n"])
        value, low, high = (f"{100 * score[key]:.1f}" for key in ("value", "low", "high"))
        assert row[heading.index(score["model"])] == f"{value} ({low}\N{EN DASH}{high})"
        known = [floor["value"] for floor in floors if floor["benchmark"] == score["benchmark"]]
        assert row[-2:] == [f"{100 * value:.1f}" for value in known]
    assert scores == read_json(toy_run / "scores" / "results.json")


def test_macro_means_stand_in_a_table_of_their_own(toy_run):  # noqa: F811
    page = (toy_run / "report.html").read_text()
    macro = [row for row in read_json(toy_run / "results.json") if row["metric"] == "accuracy_macro"]
    assert macro
    below = page[page.index("mean over kinds (macro)") :]
    for row in macro:
        assert f"<b>{100 * row['value']:.1f}</b>" in below


def test_models_are_compared_on_the_page(toy_run):  # noqa: F811
    cells = Read((toy_run / "report.html").read_text()).rows
    for row in read_json(toy_run / "scores" / "comparisons.json"):
        shown = f"{100 * row['difference']:+.1f}"
        assert any(
            cell[:3] == [row["benchmark"], row["model"], row["other"]] and cell[3].startswith(shown)
            for cell in cells
        )


def test_published_numbers_are_not_shown_as_comparable_with_sets_in_their_style(toy_run, tmp_path):  # noqa: F811
    page = (toy_run / "report.html").read_text()
    assert "not comparable" in page
    shutil.copytree(toy_run / "scores", tmp_path / "scores")
    for name in ("results.json", "groups.json", "floors.json", "comparisons.json"):
        path = tmp_path / "scores" / name
        path.write_text(path.read_text().replace('"sblimp"', '"sblimp-dev"'))
    report(ReportConfig(runs={"scores": tmp_path / "scores"}), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "not comparable" not in page
    heading = next(row for row in Read(page).rows if row[0] == "model" and row[1] == "parameters")
    assert heading[3:-1] == ["sBLIMP", "sBLIMP, macro", "sBLIMP, micro"]


def test_generated_speech_has_a_table(toy_run, tmp_path):  # noqa: F811
    shutil.copytree(toy_run / "scores", tmp_path / "generation")
    run = json.loads((tmp_path / "generation" / "run.json").read_text()) | {"stage": "evaluate-generation"}
    (tmp_path / "generation" / "run.json").write_text(json.dumps(run))
    rows = [
        {"model": "twist", "metric": "genppl", "value": 62.84, "low": 58.1, "high": 67.0, "n": 1000},
        {"model": "twist", "metric": "auto_bleu_2", "value": 0.0388, "low": 0.03, "high": 0.045, "n": 1000},
        {"model": "twist", "metric": "distinct_2", "value": 0.5, "low": None, "high": None, "n": 1000},
    ]
    (tmp_path / "generation" / "results.json").write_text(json.dumps(rows))
    report(ReportConfig(runs={"generation": tmp_path / "generation"}), tmp_path / "out")
    cells = Read((tmp_path / "out" / "report.html").read_text()).rows
    assert ["GenPPL, prompt and continuation", "62.84 (58.1\N{EN DASH}67)"] in cells
    assert ["auto-BLEU-2 of the text in %", "3.88 (3\N{EN DASH}4.5)"] in cells
    assert ["distinct 2", "0.5"] in cells


@pytest.mark.parametrize("trustworthy", [True, False])
def test_how_far_a_recogniser_is_to_be_believed_is_said(toy_run, tmp_path, trustworthy):  # noqa: F811
    shutil.copytree(toy_run / "scores", tmp_path / "reader")
    run = json.loads((tmp_path / "reader" / "run.json").read_text()) | {"stage": "fit-recognizer"}
    run["config"] = {"vocoder": "griffin-lim"}
    run["results"] = {
        "num_held_out_words": 2614, "trustworthy": trustworthy, "word_errors": 0.0467,
        "word_errors_interval": [0.0358, 0.0591], "resynthesis_word_errors": 0.4002,
        "resynthesis_word_errors_interval": [0.3772, 0.4229],
    }  # fmt: skip
    (tmp_path / "reader" / "run.json").write_text(json.dumps(run))
    report(ReportConfig(runs={"reader": tmp_path / "reader"}), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>4.7 %</b> (3.6\N{EN DASH}5.9)" in page
    assert "<b>40.0 %</b> (37.7\N{EN DASH}42.3)" in page
    assert ("to be believed" in page) != trustworthy


def test_the_page_says_what_was_run_at_what_cost(toy_run):  # noqa: F811
    rows = {row[0]: row for row in Read((toy_run / "report.html").read_text()).rows if len(row) == 5}
    for name, folder in runs_of(toy_run).items():
        run = read_run(folder)
        assert rows[name][1] == run.stage
        assert rows[name][2] == f"{run.seconds:.1f}"
        assert rows[name][3] == f"{run.peak_memory_bytes / 2**20:.0f} MiB"
        assert rows[name][4] == run.fingerprint
    page = (toy_run / "report.html").read_text()
    for library, version in run.library_versions.items():
        assert f"{library} {version}" in page


def test_twist_is_held_against_random_initialisation(toy_run):  # noqa: F811
    page = (toy_run / "report.html").read_text()
    losses = [read_run(toy_run / name).results["final_validation_loss"] for name in ("twist", "random")]
    for loss in losses:
        assert f"<b>{loss:.3f}</b>" in page
    assert ("TWIST initialisation is better by" in page) == (losses[0] < losses[1])


def test_what_tuning_and_testing_share_is_counted(toy_run):  # noqa: F811
    tuned = {row["kind"] for row in read_json_lines(toy_run / "preference-units" / "pairs.jsonl")}
    tested = read_json_lines(toy_run / "benchmark-units" / "pairs.jsonl")
    cells = [row for row in Read((toy_run / "report.html").read_text()).rows if len(row) == 4]
    shared = {row[0]: row for row in cells if row[0] in {pair["benchmark"] for pair in tested}}
    for benchmark, row in shared.items():
        kinds = {pair["kind"] for pair in tested if pair["benchmark"] == benchmark}
        assert row[3] == (", ".join(sorted(kinds & tuned)) or "none")
    assert shared["storycloze"][2:] == ["0", "none"]


def test_text_that_looks_like_markup_stays_text(toy_run, tmp_path):  # noqa: F811
    scores, sound = tmp_path / "scores", tmp_path / "continuations"
    shutil.copytree(toy_run / "scores", scores)
    shutil.copytree(toy_run / "continuations", sound)
    for name in ("results.json", "groups.json", "comparisons.json", "floors.json"):
        rows = json.loads((scores / name).read_text())
        for row in rows:
            if "model" in row:
                row["model"] = row["model"].replace("twist", HOSTILE)
            if "group" in row:
                row["group"] += HOSTILE
            row["benchmark"] += HOSTILE
        (scores / name).write_text(json.dumps(rows))
    lines = [json.loads(line) for line in (sound / "continuations.jsonl").read_text().splitlines()]
    for line in lines:
        line["prompt"] += HOSTILE
        line["model"] = line["model"] and line["model"] + HOSTILE
    (sound / "continuations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = {"units": toy_run / "units", HOSTILE: scores, "sound": sound}
    report(ReportConfig(runs=runs, title=HOSTILE), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    tags = [tag for tag, _ in Read(page).tags]
    assert "script" not in tags
    assert "img" not in tags
    assert page.count("&lt;script&gt;") >= 5
    with chromium(tmp_path / "profile") as tab:
        tab.open(tmp_path / "out" / "report.html", 1100, 800)
        assert tab.evaluate("document.title") == HOSTILE
        assert tab.complaints == []


def test_the_page_holds_everything_it_shows(toy_run):  # noqa: F811
    page = (toy_run / "report.html").read_text()
    for tag, attributes in Read(page).tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_a_low_score_is_on_the_plot(toy_run, tmp_path):  # noqa: F811
    shutil.copytree(toy_run / "scores", tmp_path / "scores")
    rows = json.loads((tmp_path / "scores" / "results.json").read_text())
    for row in rows:
        row |= {"value": 0.1, "low": 0.05, "high": 0.2}
    (tmp_path / "scores" / "results.json").write_text(json.dumps(rows))
    report(ReportConfig(runs={"scores": tmp_path / "scores"}), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()

    # vertices go down the page: a bar's top must lie above the lower edge of the axes' white ground
    def ys(path):
        return [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]

    ground = re.search(r'<g id="patch_2">\s*<path d="(M [^"]+)"', page)
    bars = re.findall(r'<path d="(M [^"]+)"[^>]*style="fill: #2b6cb0"', page)
    assert len(bars) >= 4
    for bar in bars[:4]:
        assert min(ys(bar)) < max(ys(ground[1])) - 1


def test_a_run_that_is_not_finished_is_refused(toy_run, tmp_path):  # noqa: F811
    (tmp_path / "half").mkdir()
    with pytest.raises(InputError, match="holds no finished run"):
        report(ReportConfig(runs={"units": toy_run / "units", "half": tmp_path / "half"}), tmp_path / "out")


def test_a_report_without_scores_or_sound_is_still_a_page(toy_run, tmp_path):  # noqa: F811
    report(ReportConfig(runs={"units": toy_run / "units"}), tmp_path / "out")
    assert read_json(tmp_path / "out" / "results.json") == []
    assert "What was run" in (tmp_path / "out" / "report.html").read_text()
