"""The documents of a graduation: what they say follows from the report, and the page needs nothing from elsewhere."""

import json
import os
import re
import shutil
import subprocess
from datetime import date
from html.parser import HTMLParser

import pytest
from graduation_evidence import made
from graduation_report import facts, written_tables

from harness.figures import LineFigure, MatrixFigure, figure_to_json
from harness.graduation.waivers import Waiver
from harness.records import Status
from harness.render import TEMPLATES, write_report
from harness.report import GATE_FILES

WAIVER = Waiver(check="NOTE", owner="Ada <b>", reason="measured by hand on other texts", expires=date(2099, 1, 1))
NASTY = "</script><script>alert(1)</script> | a"


@pytest.fixture
def tables(tmp_path):
    return written_tables(tmp_path)


@pytest.fixture
def runs(tmp_path):
    """Logs of two trainings, one with a spike and a number that is not finite."""
    found = []
    for seed in (0, 1):
        directory = tmp_path / f"run-{seed}"
        directory.mkdir()
        steps = range(1, 1201)
        rows = [
            {"kind": "step", "step": i, "loss": 5 + 4 / i + (i % 7) / 20, "grad_norm": 1.0 + (i % 5) / 10,
             "grad_norm_rwkv": 0.5, "grad_norm_mamba": 1.0} for i in steps
        ]  # fmt: skip
        if seed:
            rows[777]["loss"] = 19.0
            rows[800]["grad_norm"] = "inf"
        rows += [{"kind": "eval", "step": i, "val_loss": 6 + 3 / (1 + i)} for i in range(0, 1201, 200)]
        rms = {"rwkv": [[1.0, 2.0]] * 2, "mamba": [[0.1]] * 2}
        rows += [{"kind": "probe", "step": i, "gate_mean": [0.4, 0.6], "state_rms": rms} for i in range(200, 1201, 200)]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.append({"directory": str(directory), "seed": seed, "name": "GF-MH", "baselines": {"unigram": 7.2}})
    return found


def published():
    two = LineFigure(f"two panels {NASTY}", "lag", "y", {p: {"a, b": [(1, 2.0), (8, 1.0)]} for p in "pq"}, x_log=True)
    matrix = MatrixFigure("matrix", "x", "y", "v", [[1.0, 2.0]])
    return [{"name": n, "check": "G1", "figure": figure_to_json(f)} for n, f in (("two", two), ("matrix", matrix))]


CASES = {
    "GO": (made(), "GO"),
    "CAUTION": (made(stability=2, canary=2, scaling=1, resource=1), "CAUTION"),
    "waived": (made(statuses={"NOTE": Status.FAIL}, waivers=(WAIVER,)), "CAUTION"),
    "HOLD": (made(scaling=0), "HOLD"),
    "NO-GO": (made(statuses={"G1": Status.FAIL}), "NO-GO"),
    "INCOMPLETE": (made(canary=None), "INCOMPLETE"),
    "not run": (made(unplanned=frozenset({"RESUME"})), "INCOMPLETE"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_verdict_and_its_reasons_come_first_in_every_document(case, tables, tmp_path):
    evidence, verdict = CASES[case]
    out = tmp_path / "out"
    report = write_report(facts(evidence), tables, out)
    assert report.verdict == verdict
    html, markdown = (out / "decision.html").read_text(), (out / "decision.md").read_text()
    assert markdown.startswith(f"# {report.headline}\n")
    assert report.headline.startswith(verdict)
    order = ["<h1", "Why", 'id="matrix"', 'id="gates"', 'id="checks"', 'id="every"', 'id="limits"', 'id="provenance"']
    places = [html.index(part) for part in order]
    assert places == sorted(places)
    for score in report.categories.values():
        for text in (score.why, *score.unmet[:6]):
            assert text in markdown
            assert text in html
    for reason in report.reasons:
        assert reason.replace("<", "&lt;") in markdown
    rows = [
        line for line in markdown.splitlines() if re.match(r"\| [A-Z0-9.]+ \| \*\*[A-Z]+\*\*.* \| .* \| .* \|", line)
    ]
    assert {row.split(" | ")[0].strip("| ") for row in rows} >= {settled.check for settled in report.settled}
    gate, other = GATE_FILES if verdict == "GO" else GATE_FILES[::-1]
    assert not (out / other).exists()
    binary = (out / gate).read_text()
    assert binary.startswith(f"# VALIDATION GATE: {'PASS' if verdict == 'GO' else 'FAIL'}\n\n**{report.headline}**")
    assert len(binary.splitlines()) < 60
    for wanted in (*report.reasons[:3], "pytest --graduate 3.5M", report.content_sha256, "0" * 40, "2" * 64):
        assert wanted.replace("<", "&lt;") in binary
    assert all(gate.id in binary and gate.status in binary for gate in report.hard_gates)


def test_a_waiver_is_in_the_first_lines_and_beside_its_check(tables, tmp_path):
    out = tmp_path / "out"
    write_report(facts(CASES["waived"][0]), tables, out)
    markdown, html = (out / "decision.md").read_text(), (out / "decision.html").read_text()
    assert "NOTE is waived by Ada" in "\n".join(markdown.splitlines()[:4])
    assert "NOTE is waived by Ada" in "\n".join((out / GATE_FILES[1]).read_text().splitlines()[:6])
    [row] = [line for line in markdown.splitlines() if line.startswith("| NOTE |")]
    assert "**WARN**, waived" in row
    assert "measured by hand on other texts" in row
    assert "Ada <b>" not in html + markdown


def test_the_binary_of_an_earlier_run_does_not_outlive_it(tables, tmp_path):
    out = tmp_path / "out"
    write_report(facts(made()), tables, out)
    assert (out / GATE_FILES[0]).exists()
    write_report(facts(made(scaling=0)), tables, out)
    assert [name for name in GATE_FILES if (out / name).exists()] == [GATE_FILES[1]]
    write_report(facts(made(), graduates=False), tables, out)
    assert not any((out / name).exists() for name in GATE_FILES)


def test_a_suite_run_has_no_verdict_and_no_script(tables, tmp_path, runs):
    out = tmp_path / "out"
    report = write_report(facts(made(), graduates=False, runs=runs), tables, out)
    html, markdown = (out / "decision.html").read_text(), (out / "decision.md").read_text()
    assert report.verdict is None
    for text in (html, markdown):
        assert "The matrix" not in text
        assert "Hard gates" not in text
    assert "<script" not in html
    assert html.count("data:image/png") == len(report.plots) == 4


def test_a_check_whose_records_the_audit_refuses_says_so(tables, tmp_path):
    sound = made()
    touched = [
        record.model_copy(update={"note": "touched"}) if record.check == "G1" else record for record in sound.records
    ]
    write_report(facts(sound.after(touched)), tables, tmp_path / "out")
    markdown = (tmp_path / "out" / "decision.md").read_text()
    [row] = [line for line in markdown.splitlines() if line.startswith("| G1 |")]
    assert "**INVALID**" in row
    assert "not those that it reported" in row


class Page(HTMLParser):
    """What a page loads, the scripts that it runs and the data that it holds."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.scripts, self.data, self.headings, self.lacking = [], [], [], [], []
        self._into = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.addresses += [given[name] for name in ("src", "href", "srcset", "action") if name in given]
        if tag in ("h1", "h2", "h3"):
            self.headings.append(int(tag[1]))
        if (tag == "img" and not given.get("alt")) or (tag == "th" and "scope" not in given):
            self.lacking.append(self.get_starttag_text()[:80])
        if tag == "script":
            self._into = self.data if given.get("type") == "application/json" else self.scripts
            self._into.append("")

    def handle_endtag(self, tag):
        self._into = None if tag == "script" else self._into

    def handle_data(self, data):
        if self._into is not None:
            self._into[-1] += data


def test_the_page_of_a_graduation_is_whole_small_and_accessible(tables, tmp_path, runs):
    out = tmp_path / "out"
    write_report(facts(made(), runs=runs, figures=published()), tables, out)
    text = (out / "decision.html").read_text()
    page = Page(text)
    assert len(text) < 4_000_000
    assert not [address for address in page.addresses if re.match(r"(https?:)?//", address)]
    assert len(page.scripts) == 1
    assert "default-src 'none'" in text
    assert page.lacking == []
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(later - former <= 1 for former, later in zip(page.headings, page.headings[1:], strict=False))
    # loss, gradients, their ratio, gates of 2 seeds, 2 states of 2 seeds, and the 2 panels that were published
    assert len(page.data) == 3 + 2 + 4 + 2
    assert all(json.loads(data)["$schema"].startswith("https://vega.github.io/schema/vega-lite/") for data in page.data)
    assert text.count("<noscript>") == 2
    assert "<script>alert" not in text


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_known_answers():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize(("block", "page"), [(0, "#ffffff"), (1, "#121212")], ids=["light", "dark"])
def test_text_can_be_read(block, page):
    """WCAG 2.2, 1.4.3: 4.5 to 1 on the page and on its cards."""
    sheet = (TEMPLATES / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", sheet, re.S)
    named = dict(re.findall(r"--(\w+): (#[0-9a-fA-F]{3,6});", blocks[block]))
    colours = {
        name: f"#{''.join(c * 2 for c in value[1:])}" if len(value) == 4 else value for name, value in named.items()
    }
    # a card is an eighth of grey over the page: #8881 is 1/15 of it
    card = "#" + "".join(f"{round(int(page[i : i + 2], 16) * 14 / 15 + 0x88 / 15):02x}" for i in (1, 3, 5))
    for name in ("dim", "pass", "warn", "fail", "none"):
        for ground in (page, card):
            assert contrast(colours[name], ground) >= 4.5, (name, ground)
    if not block:
        assert all(contrast(colours[hue], "#ffffff") >= 4.5 for hue in ("b0", "b1", "b2", "b3"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser: apt-get install chromium")
def test_a_browser_draws_the_charts_without_a_request_or_an_error(tables, tmp_path, runs):
    out = tmp_path / "out"
    write_report(facts(made(), runs=runs, figures=published()), tables, out)
    page = out / "decision.html"
    charts = page.read_text().count('class="chart"')
    assert charts == 11
    drawn, log = browse(page, tmp_path, 1280)
    assert 'data-charts="drawn"' in drawn
    assert len(re.findall(r'<svg[^>]* class="marks"', drawn)) == charts
    assert "CONSOLE" not in log, log
    assert requested(tmp_path) == set()
    talkative = out / "talkative.html"
    talkative.write_text('<img alt="x" src="http://nowhere.invalid/x.png">')
    browse(talkative, tmp_path, 1280)
    assert requested(tmp_path) == {"http://nowhere.invalid"}, "the log of requests would not have shown any"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser: apt-get install chromium")
def test_nothing_sticks_out_on_a_telephone(tables, tmp_path, runs):
    out = tmp_path / "out"
    evidence = made(canary=None, statuses={"G1": Status.FAIL})
    write_report(facts(evidence, runs=runs, figures=published()), tables, out)
    widths = measured_widths(out, tmp_path)
    assert widths == {"decision.html": 390}, "scrolls sideways"


def measured_widths(out, tmp_path):
    """How wide each page is in a frame as wide as a telephone, once its charts are drawn."""
    frame = out / "frame.html"
    frame.write_text(
        '<body style="margin:0"><iframe src="decision.html" style="width:390px;height:900px;border:0"></iframe><script>'
        "const frame = document.querySelector('iframe');"
        "frame.onload = () => { const look = () => { const page = frame.contentDocument.documentElement;"
        "if (page.dataset.charts !== 'drawn') return setTimeout(look, 50);"
        "document.body.dataset.width = page.scrollWidth; }; look(); };</script>"
    )
    drawn, _ = browse(frame, tmp_path, 800)
    [width] = re.findall(r'data-width="(\d+)"', drawn)
    return {"decision.html": int(width)}


def browse(page, tmp_path, width):
    """The document as the browser has it after its scripts, and what it logged. Every request would go nowhere."""
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
         "--allow-file-access-from-files", "--proxy-server=127.0.0.1:1", "--enable-logging=stderr",
         f"--log-net-log={tmp_path / 'net.json'}", f"--user-data-dir={tmp_path / 'profile'}",
         "--disable-background-networking", "--disable-component-update", "--no-first-run",
         f"--window-size={width},900", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=240, check=True, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    return done.stdout, done.stderr


def requested(tmp_path):
    """Where pages were asked for, without what Chromium asks its maker of its own accord."""
    addresses = re.findall(r'"url":"(https?://[^/"]+)', (tmp_path / "net.json").read_text())
    return {address for address in addresses if not re.search(r"[./](google|googleapis|gvt1)\.com$", address)}
