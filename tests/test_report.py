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
    heading = rows[0]
    assert heading[2:] == ["random", "twist", "twist-dpo"]
    shown = {row[0]: row for row in rows[1:5]}
    for score in scores:
        row = shown[score["benchmark"]]
        assert row[1] == str(score["n"])
        value, low, high = (f"{100 * score[key]:.1f}" for key in ("value", "low", "high"))
        assert row[heading.index(score["model"])] == f"{value} ({low}\N{EN DASH}{high})"
    assert scores == read_json(toy_run / "scores" / "results.json")


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
    for name in ("results.json", "kinds.json"):
        rows = json.loads((scores / name).read_text())
        for row in rows:
            row["model"] = row["model"].replace("twist", HOSTILE)
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
