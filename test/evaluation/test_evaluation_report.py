"""The report: opened in a real browser, and safe with whatever a stranger calls a case."""

import html
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from acouslic.errors import AcouslicError
from acouslic.geometry import FRAMES_PER_CASE
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.official import AGGREGATED_METRICS, aggregate
from evaluation.metrics.summary import summarise
from evaluation.report.page import report_page, write_report
from evaluation.report.text import number

Build = Callable[..., CaseResult]
VOID = {"meta", "input", "br", "img"}
HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "'></svg></table></script><script>document.body.dataset.owned=1</script>",
    "\u202egnp.exe\n\x1b[31m $style ${script}",
]


def circle(x: float, y: float, radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).astype(np.int32)


def made_up(make_case_result: Build, count: int, names: Sequence[str] | None = None, scores: bool = True) -> Any:
    """Cases as an evaluation gives them: most measured, some without a frame or an ellipse."""
    generator = np.random.default_rng(count)
    results = []
    for index in range(count):
        start = int(generator.integers(5, 120))
        labels = np.zeros(FRAMES_PER_CASE, np.uint8)
        labels[start : start + 14], labels[start + 4 : start + 8] = 2, 1
        frame_number = -1 if index % 10 == 9 else start + int(generator.integers(0, 20))
        reference_mm, quality = float(generator.normal(250, 30)), float(generator.random())
        measured = frame_number >= 0 and index % 7 != 6
        probability = np.clip(0.7 * (labels > 0) + 0.5 * generator.random(FRAMES_PER_CASE), 0, 1)
        fields: dict[str, Any] = {"presence_probability": probability, "presence_threshold": 0.6} if scores else {}
        label = int(labels[frame_number]) if frame_number >= 0 else 0
        results.append(
            make_case_result(
                case=names[index] if names else f"case-{index:03}",
                subject_id=str(index // 2),
                labels=labels,
                frame_number=frame_number,
                annotated_sweeps=(True,) + (False,) * 5,
                reference_ac_mm=reference_mm if frame_number >= 0 else None,
                predicted_ac_mm=reference_mm * (0.9 + 0.2 * quality) if measured else None,
                undefined_overlap=not measured,
                annotated_distance_frames=0 if label else 3 if frame_number >= 0 else None,
                rows=562,
                columns=744,
                reference_outline_frame_number=start,
                reference_outline_px=(circle(372, 300, 110),),
                predicted_outline_px=(circle(380, 310, 105),) if measured else (),
                official={
                    "wfss": (0.0, 1.0, 0.6)[label],
                    "DiceCoefficientSoft": quality if measured else 0.0,
                    "nae_circumference": 0.1 * quality if measured else 1.0,
                },
                **fields,
            )
        )
    return results


def metrics_of(results: Sequence[CaseResult]) -> dict[str, Any]:
    return aggregate([result.official for result in results]) | summarise(results)


class Page(HTMLParser):
    """What the tests look at in a page: elements, ids, links, rows of the table of cases."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self._in_cases = self._in_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self._in_cases = dict(attrs).get("id") == "cases"
        if tag == "tr" and self._in_cases:
            self.rows.append([])
        if tag in ("td", "th") and self._in_cases:
            self.rows[-1].append("")
            self._in_cell = True
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, text: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += text

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def html(self) -> dict[str, str | None]:
        return self.attributes("html")[0]

    def column(self, heading: str) -> list[str]:
        index = self.rows[0].index(heading)
        return [row[index] for row in self.rows[1:]]


def browse(chromium: str, profile: Path, address: str, *options: str) -> str:
    """The page's document after its script ran, or nothing where `options` ask for a picture."""
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", *(options or ["--dump-dom"]), address]
    # Chromium writes what it thinks of its container to stderr; only the page counts.
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout.decode("utf-8")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One browser profile for all tests of this file: making one takes a second."""
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def report(make_case_result: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 24 made-up cases."""
    results = made_up(make_case_result, 24)
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, results, metrics_of(results))
    return path


# In the browser


def test_the_script_runs_and_leaves_the_order_of_the_cases(chromium: str, profile: Path, report: Path) -> None:
    """The page's own policy lets its own script run; without a wish the cases stay sorted by name."""
    page = Page(browse(chromium, profile, report.as_uri()))
    assert page.html["data-script"] == "ready"
    assert not any("aria-sort" in header for header in page.attributes("th"))
    assert page.column("Case") == [f"case-{index:03}" for index in range(24)]


@pytest.mark.parametrize(
    ("fragment", "heading", "descending"), [("error", "Error (%)", False), ("-case", "Case", True)]
)
def test_an_address_sorts_the_table(
    chromium: str, profile: Path, report: Path, fragment: str, heading: str, descending: bool
) -> None:
    """By number or by text, either way; empty cells come last; the heading says so to a screen reader."""
    page = Page(browse(chromium, profile, f"{report.as_uri()}#sort={fragment}"))
    direction = "descending" if descending else "ascending"
    values = page.column(heading)
    known = [value for value in values if value != "–"]
    assert values[len(known) :] == ["–"] * (len(values) - len(known))
    keys: list[Any] = known if heading == "Case" else [float(value.replace("−", "-")) for value in known]
    assert keys == sorted(keys, reverse=descending)
    marked = [(header["data-key"], header["aria-sort"]) for header in page.attributes("th") if "aria-sort" in header]
    assert marked == [(fragment.lstrip("-"), direction)]
    assert sorted(page.column("Case")) == [f"case-{index:03}" for index in range(24)]


def copy_with_script(report: Path, folder: Path, script: str) -> str:
    """Address of a copy of the page without its policy and with a script at its end."""
    text = report.read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    path = folder / "copy.html"
    path.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return path.as_uri()


def test_clicks_and_the_filter_work(chromium: str, profile: Path, report: Path, tmp_path: Path) -> None:
    """A heading sorts, again in reverse, and changes the address; the filter hides what does not match."""
    acts = """
      const click = (key) => document.querySelector(`th[data-key="${key}"] button`).click();
      const order = () => document.querySelector('th[data-key="score"]').getAttribute("aria-sort");
      click("score"); const first = order();
      click("score"); const second = order();
      const filter = document.getElementById("filter");
      filter.value = "CASE-01"; filter.dispatchEvent(new Event("input"));
      const visible = document.querySelectorAll("#cases tbody tr:not([hidden])").length;
      const shown = document.getElementById("shown").textContent;
      document.documentElement.dataset.result =
        [first, second, location.hash, shown, visible, filter.closest("p").hidden].join("; ");
    """
    page = Page(browse(chromium, profile, copy_with_script(report, tmp_path, acts)))
    assert page.html["data-result"] == "ascending; descending; #sort=-score; 10 of 24 cases; 10; false"


def test_a_phone_needs_no_sideways_scrolling(chromium: str, profile: Path, report: Path, tmp_path: Path) -> None:
    """Nothing is wider than a screen of 360 pixels. Only pictures are taken at that width, so a picture tells."""
    paints = """
      const cover = document.createElement("div");
      const paint = () => {
        const fits = innerWidth === 360 && document.documentElement.scrollWidth <= innerWidth;
        cover.style = `position:fixed;inset:0;z-index:9;background:${fits ? "#00ff00" : "#ff0000"}`;
      };
      document.body.append(cover);
      addEventListener("resize", paint);
      paint();
    """
    picture = tmp_path / "phone.png"
    address = copy_with_script(report, tmp_path, paints)
    browse(chromium, profile, address, "--window-size=360,700", f"--screenshot={picture}")
    pixels = cv2.imread(str(picture))
    assert pixels is not None
    assert np.all(pixels == (0, 255, 0))


def test_a_picture_can_be_taken(chromium: str, profile: Path, report: Path, tmp_path: Path) -> None:
    """The page paints: the blue of the reference and the orange of the prediction are there."""
    picture = tmp_path / "report.png"
    browse(chromium, profile, report.as_uri(), "--window-size=1200,5000", f"--screenshot={picture}")
    pixels = cv2.imread(str(picture))
    assert pixels is not None
    assert pixels.shape == (5000, 1200, 3)
    for red, green, blue in ((0x1D, 0x5F, 0xA8), (0xC2, 0x41, 0x0C)):
        assert np.all(pixels == (blue, green, red), axis=-1).sum() > 100


def test_hostile_names_are_text(chromium: str, profile: Path, make_case_result: Build, tmp_path: Path) -> None:
    """Names and failures that are markup are shown, not run: no element, no script, no attribute is theirs."""
    results = made_up(make_case_result, 4, names=HOSTILE)
    results[1] = make_case_result(case=HOSTILE[1], rows=562, columns=744, failure=f"case x: {HOSTILE[0]}")
    path = tmp_path / "report.html"
    write_report(path, results, metrics_of(results))
    page = Page(browse(chromium, profile, path.as_uri()))
    assert page.html["data-script"] == "ready"
    assert "data-owned" not in page.attributes("body")[0]
    text = path.read_text(encoding="utf-8")
    assert "<title>Fetal abdomen" in text
    plain = Page(text)
    assert len(plain.attributes("script")) == 1
    assert not plain.attributes("img")
    assert not any(name.startswith("on") for _, attributes in plain.elements for name in attributes)
    assert plain.column("Case") == [escape_only_controls(name) for name in HOSTILE]
    assert "\u202e" not in text
    assert "\x1b" not in text


def escape_only_controls(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


# The text of the page


def variants(make_case_result: Build) -> Iterable[tuple[str, list[CaseResult]]]:
    yield "three", made_up(make_case_result, 3)
    yield "no scores", made_up(make_case_result, 3, scores=False)
    yield "some scores", [*made_up(make_case_result, 2), make_case_result(case="bare", frame_number=5)]
    yield "one bare", [make_case_result()]
    yield "one measured", made_up(make_case_result, 1)
    yield "all failed", [make_case_result(case=str(index), failure=f"case {index}: broken") for index in range(120)]
    alike = {"frame_number": 1, "reference_ac_mm": 250.0, "predicted_ac_mm": 250.0}
    yield "all alike", [make_case_result(case=name, **alike) for name in "ab"]


def test_every_kind_of_run_makes_a_sound_page(make_case_result: Build) -> None:
    """Elements close in order, ids are unique, links lead somewhere, no number is NaN, no network is asked."""
    for name, results in variants(make_case_result):
        text = report_page(results, metrics_of(results))
        page = Page(text)
        assert page.open == [], name
        ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
        assert set(ids.values()) == {1}, name
        links = {str(attributes["href"]) for attributes in page.attributes("a")}
        assert {link.removeprefix("#") for link in links} <= set(map(str, ids)), name
        assert {section["aria-labelledby"] for section in page.attributes("section")} <= set(ids), name
        assert len(page.rows) == len(results) + 1, name
        assert not re.search(r"\bnan\b|\binf\b|None", text), name
        assert not re.search(r"https?:|//[a-z]|url\(|@import|\bsrc=", text.replace("// ", "")), name
        assert not any("style" in attributes for _, attributes in page.elements), name
        assert all("aria-label" in svg or svg.get("aria-hidden") for svg in page.attributes("svg")), name


def test_the_same_results_make_the_same_page(make_case_result: Build) -> None:
    """No date, no random number."""
    results = made_up(make_case_result, 5)
    assert report_page(results, metrics_of(results)) == report_page(results, metrics_of(results))


def test_three_hundred_cases_stay_small(make_case_result: Build) -> None:
    """Measured 0.6 MB; with the most jagged outlines that the evaluation passes on still below 2 MB."""
    jagged = tuple(circle(300, 300, radius) for radius in range(10))
    corners = np.random.default_rng(0).integers(0, 744, (10, 400, 2), dtype=np.int32)
    results = made_up(make_case_result, 300)
    assert len(report_page(results, metrics_of(results)).encode()) < 700_000
    worst = [
        make_case_result(
            case=f"worst {index}",
            rows=562,
            columns=744,
            reference_outline_px=jagged,
            reference_outline_frame_number=1,
            predicted_outline_px=tuple(corners),
        )
        for index in range(20)
    ]
    results = [*results[:280], *worst]
    assert len(report_page(results, metrics_of(results)).encode()) < 2_000_000


def test_failures_partial_scores_and_undefined_overlaps_are_said_first(make_case_result: Build) -> None:
    """Before the score: what makes it worth less."""
    results = [*made_up(make_case_result, 4), make_case_result(case="lost", failure="case lost: the mask is no image")]
    text = report_page(results, metrics_of(results))
    before = text[: text.index('id="score"')]
    assert "1 case could not be scored" in before
    assert "case lost: the mask is no image" in before
    assert "Only 4 of 5 cases have presence scores" in before
    undefined = sum(result.undefined_overlap for result in results)
    assert f"In {undefined} case" in before or undefined == 0
    good = [result for result in made_up(make_case_result, 4) if not result.undefined_overlap]
    assert "To know first" not in report_page(good, metrics_of(good))


def test_long_lists_of_failures_are_cut(make_case_result: Build) -> None:
    """A hundred are listed, the others counted."""
    results = [make_case_result(case=str(index), failure=f"case {index}: broken") for index in range(120)]
    text = report_page(results, metrics_of(results))
    assert text.count(": broken</li>") == 100
    assert "And 20 more." in text


def test_pictures_are_of_the_worst_cases(make_case_result: Build) -> None:
    """Twelve, from the worst on, then six of the poorest outlines among the others; the table links to them."""
    results = made_up(make_case_result, 40)
    page = Page(report_page(results, metrics_of(results)))
    figures = [attributes["id"] for attributes in page.attributes("figure") if attributes.get("class") == "case"]
    assert figures == [f"case-{index}" for index in range(1, 19)]
    worst = sorted(results, key=lambda result: (result.score, result.case))[:12]
    text = report_page(results, metrics_of(results))
    for index, result in enumerate(worst, start=1):
        assert f'<a href="#case-{index}">{result.case}</a>' in text
    few = report_page(results[:3], metrics_of(results[:3]))
    assert few.count('<figure class="case"') == 3
    assert "Cases, worst first" in few


def test_numbers_are_those_of_the_metrics(make_case_result: Build) -> None:
    """The score with its interval, both F1 and the bias stand in the page as they stand in metrics.json."""
    results = made_up(make_case_result, 24)
    metrics = metrics_of(results)
    text = report_page(results, metrics)
    assert f"<strong>{metrics['score']['mean']:.4f}</strong>" in text
    assert f"{metrics['intervals']['score']['lower']:.3f} to {metrics['intervals']['score']['upper']:.3f}" in text
    for protocol in ("annotated_sweeps", "all_frames"):
        assert f">{metrics['frame_f1'][protocol]['at_own_threshold']['f1']:.3f}<" in text
    assert f"bias {number(metrics['circumference']['error_mm']['bias'], 1, sign=True)} mm" in text


def test_every_official_metric_is_explained(make_case_result: Build) -> None:
    """A row each, with a line on what it is, its mean and its deviation."""
    results = made_up(make_case_result, 3)
    metrics = metrics_of(results)
    text = report_page(results, metrics)
    for name in AGGREGATED_METRICS:
        mean, deviation = (number(metrics[name][statistic], 4) for statistic in ("mean", "std"))
        row = rf'<tr><th scope="row">{name}</th><td>([^<]+)</td><td class="number">{mean}</td>'
        found = re.search(rf'{row}<td class="number">{deviation}</td></tr>', text)
        assert found, name
        assert len(found[1]) > 10, name


def test_f1_stands_beside_what_it_is_without_its_worst_and_its_best_case(make_case_result: Build) -> None:
    """And the page says how its intervals were made, and what they cover."""
    results = made_up(make_case_result, 24)
    upside_down = 1 - results[0].presence_probability
    results = [replace(results[0], presence_probability=upside_down), *results[1:]]
    metrics = metrics_of(results)
    text = report_page(results, metrics)
    around = metrics["intervals"]["frame_f1_all_frames"]
    assert around["without_best_case"] < around["estimate"] < around["without_worst_case"]
    cells = f"{around['lower']:.3f} to {around['upper']:.3f}</td>"
    cells += f'<td class="number">{around["without_worst_case"]:.3f} / {around["without_best_case"]:.3f}</td>'
    assert cells in text
    assert "jackknife on the logit scale" in text


def test_marks_have_tooltips(make_case_result: Build) -> None:
    """A dot or bar names its case: markup in a name stays text there too."""
    results = made_up(make_case_result, 4, names=HOSTILE)
    text = report_page(results, metrics_of(results))
    bars = text[text.index('<svg class="plot case-bars"') :]
    bars = bars[: bars.index("</svg>")]
    for result in results:
        name = html.escape(escape_only_controls(result.case), quote=False)
        assert bars.count(f"<title>{name}: {number(result.score)}</title>") == 3
    dots = text[text.index('<svg class="plot bland-altman"') :]
    assert dots[: dots.index("</svg>")].count("<title>") == sum(r.predicted_ac_mm is not None for r in results)


def test_only_a_report_loads_matplotlib(repository: Path) -> None:
    """Workers and `compare` start without it."""
    code = "import sys, evaluation.__main__, evaluation.evaluate, evaluation.compare, evaluation.outputs\n"
    code += "print('matplotlib' in sys.modules, 'jinja2' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def test_a_folder_that_is_not_there_is_one_sentence(make_case_result: Build, tmp_path: Path) -> None:
    """The report cannot be written: AcouslicError, with the path."""
    results = made_up(make_case_result, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(AcouslicError, match=r"report\.html"):
        write_report(tmp_path / "file" / "report.html", results, metrics_of(results))


# Small parts


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [(-0.0004, 3, False, "0.000"), (-1.25, 1, False, "−1.2"), (2.0, 0, True, "+2"), (-0.04, 1, True, "0.0")],
)
def test_numbers_have_a_true_minus_and_no_negative_zero(value: float, digits: int, sign: bool, text: str) -> None:
    """-0.000 would read as a finding."""
    assert number(value, digits, sign=sign) == text
