import base64
import functools
import hashlib
import html.parser
import json
import math
import re
import shutil
import subprocess
import threading
import unicodedata
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from report_run import EVALUATED, HOSTILE, report_run
from selfplay.cli import app
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.viewing.report.charts import Axis, Line, Point, line_chart, stacked_chart, windows
from selfplay.viewing.report.html import cut, tag
from selfplay.viewing.report.page import report_page
from selfplay.viewing.report.picks import picks, results_of, surprises
from selfplay.viewing.report.rates import rate_of
from selfplay.viewing.report.run_data import read_run
from store_rows import recorded_run

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
WIDTHS = (390, 1280)
ELEMENTS = re.compile(
    "html|head|meta|title|style|body|nav|a|h1|h2|h3|h4|section|p|div|table|thead|tbody|tr|th|td|figure|figcaption"
    "|svg|line|text|rect|circle|path|polygon|polyline|span|details|summary|b|code|pre"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "runs"
    return [report_run(folder / f"run{seed}", seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def datas(runs):
    return [read_run(RunFolder(run)) for run in runs]


@pytest.fixture(scope="module")
def page(datas):
    return report_page(datas[:1])


@pytest.fixture(scope="module")
def compared(datas):
    return report_page(datas)


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.attributes, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        self.found.append(name)
        self.attributes += [(name, key, value or "") for key, value in attributes]

    def handle_data(self, data):
        self.text.append(data)


# -- what is in it


def test_every_question_has_a_section_and_every_link_a_target(compared):
    elements = Elements(compared)
    ids = {value for _, key, value in elements.attributes if key == "id"}
    links = [value for name, key, value in elements.attributes if (name, key) == ("a", "href")]
    questions = {"learning", "forgotten", "rejections", "bugs", "ends", "time", "signal", "reading"}
    assert questions <= ids
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)


def test_each_card_is_drawn_for_a_run_that_measures_all(page):
    assert "Not measured" not in page
    titles = re.findall(r"<h3>([^<]*)</h3>", page)
    for title in (
        "Entropy",
        "KL",
        "Lag",
        "Idle",
        "Speed",
        "Difficulty",
        "Strategies",
        "Diversity",
        "Lineage",
    ):
        assert title in titles
    assert page.count("<svg viewBox") > len(titles)


def test_runs_are_compared_with_the_settings_in_which_they_differ(compared):
    text = " ".join(Elements(compared).text)
    assert "run0: injector" in text and "run1: injector" in text and "Difficulty: run1" in text
    assert re.search(r"seed\s+0\s+1", text)


def test_rates_of_evaluations_come_with_intervals_for_each_set(page, datas):
    for name in EVALUATED:
        assert f"set {name}, update 6:" in page
    rate = datas[0].evaluations[0].rates()["human"]
    assert rate.bugs == EVALUATED["human"] and rate.low < rate.mean < rate.high
    assert "points" in page and "What did it forget?" in page


def test_a_run_without_updates_has_a_page(tmp_path):
    run = report_run(tmp_path / "new", updates=0)
    text = report_page([read_run(RunFolder(run))])
    assert "Not measured: " in text and "Nothing yet." in text


def test_a_run_of_an_older_version_has_a_page(tmp_path):
    assert "u0001-sol0-m1-bug2" in report_page([read_run(RunFolder(recorded_run(tmp_path / "demo")))])


# -- hostile texts


def test_hostile_texts_become_no_elements_and_no_attributes(compared):
    elements = Elements(compared)
    assert all(ELEMENTS.fullmatch(name) for name in elements.found)
    assert elements.found.count("style") == 1
    assert not [key for _, key, _ in elements.attributes if key.startswith("on") or key in ("src", "style")]
    assert "document.title='owned'" in "".join(elements.text)  # it is shown


def test_no_hidden_character_is_in_the_page(compared):
    hidden = {c for c in compared if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") and c not in "\n\t"}
    assert hidden == set()
    assert "\\u202e" in compared and "\\x1b[2J" in compared


def test_the_policy_of_the_page_names_its_own_style_and_nothing_else(page):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    expected = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert html.unescape(policy) == expected


def test_long_texts_are_cut_with_what_shows_the_rest(page):
    assert "characters left out; see: selfplay replay" in page
    assert len(page) < 400_000
    text = cut("a" * 60 + "b" * 60, 100, "more")
    assert text.startswith("a" * 50) and text.endswith("b" * 50) and "20 characters left out; more" in text


@pytest.mark.parametrize("value", [HOSTILE, "</title>", '" onload="x', "&lt;", "\u2028"])
def test_a_tag_shows_any_text_and_any_attribute_as_it_is(value):
    elements = Elements(str(tag("p", value, title=value)))
    assert elements.found == ["p"] and [key for _, key, _ in elements.attributes] == ["title"]


# -- figures


def test_episodes_to_read_are_the_best_the_worst_and_the_least_likely(datas):
    run = datas[0]
    chosen = picks(run)
    rewards = [row.reward for row in run.episodes if row.role == "solver"]
    of_solver = {kind: [one for one in some if one.row.role == "solver"] for kind, some in chosen.items()}
    assert {one.row.reward for one in of_solver["best"]} == {max(rewards)}
    assert {one.row.reward for one in of_solver["worst"]} == {min(rewards)}
    bits = surprises(run, results_of(run))
    most = max(
        bits[row.episode_id] for row in run.episodes if row.role == "solver" and row.episode_id in bits
    )
    assert of_solver["surprising"][0].surprise_bits == most
    ids = [one.row.episode_id for some in chosen.values() for one in some]
    assert len(ids) == len(set(ids))


def test_the_surprise_of_a_lone_success_is_counted_in_bits(datas):
    run = datas[0]
    results = dict.fromkeys((row.episode_id for row in run.episodes if row.role == "solver"), "not repaired")
    bug = next(row.bug_id for row in run.episodes if row.role == "solver")
    of_bug = [row.episode_id for row in run.episodes if row.bug_id == bug]
    results[of_bug[0]] = "repaired"
    bits = surprises(run, results)
    assert bits[of_bug[0]] == pytest.approx(math.log2(len(of_bug) + 1))
    assert bits[of_bug[1]] < 0.5


def test_an_interval_needs_two_bugs_and_stays_between_0_and_1():
    assert rate_of([1.0]).low is None
    rate = rate_of([0.0, 1.0])
    assert (rate.mean, rate.low, rate.high) == (0.5, 0.0, 1.0)
    rate = rate_of([0.4, 0.5, 0.6])  # t(0.975, 2) = 4.303, error 0.1 / sqrt(3)
    assert rate.high - rate.mean == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)


@pytest.mark.parametrize("updates", [[], [7], range(1, 25), range(1, 501), [1, 1000]])
def test_windows_hold_each_update_once(updates):
    found = windows(updates, 24)
    assert len(found) <= 24
    assert all(sum(update in window for window in found) == 1 for update in updates)


@pytest.mark.parametrize("low, high", [(0, 1), (-0.4, 0.3), (1, 500), (0, 3e7), (0.0041, 0.0049)])
def test_ticks_are_few_and_inside(low, high):
    ticks = Axis(low, high).ticks()
    assert 2 <= len(ticks) <= 7 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_charts_of_one_point_and_of_nothing():
    assert line_chart([Line("x", [])]) is None and stacked_chart({"a": {1: 0.0}}) is None
    assert "NaN" not in line_chart([Line("x", [Point(3, 0.0, 0.0, 0.0)])])
    assert 'width="' in stacked_chart({"a": {3: 2.0}})


def test_many_updates_are_pooled_into_few_bars():
    drawn = stacked_chart({"a": dict.fromkeys(range(1, 501), 1.0), "b": {500: 3.0}})
    assert drawn.count("<rect") <= 61
    assert "b, updates 496 to 504: 38% (3)" in drawn
    means = stacked_chart({"a": dict.fromkeys(range(1, 121), 5.0)}, shares=False)
    assert "a, updates 1 to 2: 5 (5)" in means


# -- the command


def test_the_command_writes_beside_the_run_or_where_it_is_told(runs, tmp_path):
    root = ["--runs", str(runs[0].parent)]
    result = CliRunner().invoke(
        app, ["report", "run0", "run1", *root, "--output", str(tmp_path / "page.html")]
    )
    assert result.exit_code == 0, result.output
    assert "run1" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert CliRunner().invoke(app, ["report", "run1", *root]).exit_code == 0
    assert (runs[1] / "report.html").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run0", "run0"], "the run 'run0' is named twice"),
        (["run0", "--output", "."], "cannot write the report to .: it is no file"),
        (["nothing"], "no run named 'nothing'"),
    ],
)
def test_wrong_usage_is_named(runs, arguments, message):
    result = CliRunner().invoke(app, ["report", *arguments, "--runs", str(runs[0].parent)])
    assert message in str(result.exception)


# -- in a browser

PROBE = """<!doctype html><meta charset=utf-8><pre id=found></pre><script>
const found = {};
async function look(name, width, hash) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 800;
  const loaded = new Promise(done => frame.onload = done);
  frame.src = name + hash;
  document.body.append(frame);
  await loaded;
  const page = frame.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll("body *")].filter(
    one => one.getBoundingClientRect().right > width + 0.5 && !one.closest(".table"));
  const opened = [...page.querySelectorAll("details")].filter(one => one.open).length;
  found[name + " " + width + hash] = {
    scroll: root.scrollWidth, client: root.clientWidth, wide: wide.map(one => one.outerHTML.slice(0, 120)),
    title: page.title, scripts: page.scripts.length, charts: page.querySelectorAll("svg").length, opened,
    background: getComputedStyle(page.body).backgroundColor};
}
(async () => { for (const job of JOBS) await look(...job);
  document.getElementById("found").textContent = JSON.stringify(found); })();
</script>"""


def browse(folder, jobs, dark):
    """(what the probe found, the console's messages). jobs: (page, width, fragment)."""
    (folder / "probe.html").write_text(PROBE.replace("JOBS", json.dumps(jobs)), encoding="utf-8")
    handler = functools.partial(QuietHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
        command += ["--blink-settings=preferredColorScheme=" + ("0" if dark else "1")]
        command += [f"http://127.0.0.1:{server.server_port}/probe.html"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        server.shutdown()
    found = re.search(r"<pre id=\"found\">(.*?)</pre>", result.stdout, re.DOTALL)
    assert found and found[1], result.stderr[-2000:]
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line]
    return json.loads(html.unescape(found[1])), console


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH (apt-get install chromium)")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_it_at_any_width_without_a_complaint(page, compared, tmp_path, dark):
    (tmp_path / "one.html").write_text(page, encoding="utf-8")
    (tmp_path / "two.html").write_text(compared, encoding="utf-8")
    jobs = [(name, width, "") for name in ("one.html", "two.html") for width in WIDTHS]
    found, console = browse(tmp_path, [*jobs, ("one.html", 390, "#e0-surprising-0")], dark)
    assert console == []
    for name, state in found.items():
        assert state["scroll"] <= state["client"] and state["wide"] == [], name
        assert state["scripts"] == 0 and state["title"].startswith("selfplay: run0") and state["charts"] > 20
        assert state["opened"] == ("#" in name)
    backgrounds = {state["background"] for state in found.values()}
    assert backgrounds == {"rgb(20, 23, 26)" if dark else "rgb(251, 251, 250)"}


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH (apt-get install chromium)")
def test_the_probe_sees_what_it_looks_for(tmp_path):
    """A page that overflows, and breaks its own policy, is not found to be fine."""
    (tmp_path / "bad.html").write_text(
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\"><title>bad</title>"
        "<body><p style='width:2000px'>x</p><div><svg width=2000></svg></div><script>1</script>",
        encoding="utf-8",
    )
    found, console = browse(tmp_path, [("bad.html", 390, "")], dark=False)
    state = found["bad.html 390"]
    assert state["scroll"] > state["client"] and state["wide"] and state["scripts"] == 1
    assert any("Content Security Policy" in line for line in console)
