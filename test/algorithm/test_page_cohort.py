"""`index.html`: the cases of a run, sorted, filtered and linked in a real browser."""

import cv2
import numpy as np
import pytest

from algorithm.page.cohort_page import MOST_ROWS, cohort_page, write_index
from algorithm.result.table import ResultRow

HOSTILE = "a\"'><script>document.title='owned'</script>"


def row(case, circumference_mm=None, **changes):
    """A case with a circumference, or without one."""
    fields = {"suitable": circumference_mm is not None, "frame_number": 3, "sweep": 1, "presence_probability": 0.9}
    if circumference_mm is not None:
        ends_mm = {"interval_low_mm": circumference_mm - 1, "interval_high_mm": circumference_mm + 1}
        fields |= {"circumference_mm": circumference_mm, **ends_mm}
    return ResultRow(case, **(fields | changes))


@pytest.fixture
def cohort(tmp_path):
    """Four cases: two suitable ones with pages, one that is not, and one that failed."""
    rows = [
        row("case 10", 250.0, gestational_age="28w3d", centile=43.2),
        row("case 9", 99.5, notes="0.28 mm is assumed", gestational_age="28w3d", centile=0.3),
        row("ü & #%", None, notes="all frames are black"),
        ResultRow(HOSTILE.replace("/", "_"), error="the stack is damaged"),
    ]
    for made in rows[:3]:
        (tmp_path / made.case).mkdir()
        (tmp_path / made.case / "report.html").write_text(f"<!doctype html><title>page of {made.case}</title>")
        preview = np.full((900, 1000, 3), 90, np.uint8)
        cv2.imwrite(str(tmp_path / made.case / "preview.png"), preview)
    write_index(tmp_path / "index.html", rows)
    return tmp_path


def cases(browser):
    """The cases that are shown, from top to bottom."""
    return browser.run("[...document.querySelectorAll('#cases tbody tr:not([hidden]) th')].map((th) => th.innerText)")


def test_the_table_sorts_by_numbers_and_words(browser, cohort):
    """Up, then down; cases without a value come last either way; 9 before 10."""
    browser.look(1200, 800)
    browser.open(cohort / "index.html")
    hostile = HOSTILE.replace("/", "_")
    assert cases(browser) == ["case 10", "case 9", "ü & #%", hostile]
    browser.click("[data-column='circumference']")
    assert cases(browser)[:2] == ["case 9", "case 10"]
    browser.click("[data-column='circumference']")
    assert cases(browser)[:2] == ["case 10", "case 9"]
    assert set(cases(browser)[2:]) == {"ü & #%", hostile}
    sorted_by = "document.querySelector('[aria-sort]').getAttribute('aria-sort')"
    assert browser.run(sorted_by) == "descending"
    browser.click("[data-column='case']")
    assert [case for case in cases(browser) if case.startswith("case")] == ["case 9", "case 10"]
    assert browser.complaints() == []
    assert browser.run("document.title") == "4 cases: fetal abdomen"


def test_one_case_is_counted_as_one(tmp_path):
    """In the title and in the heading."""
    write_index(tmp_path / "index.html", [row("case 9", 99.5)])
    page = (tmp_path / "index.html").read_text()
    assert "<title>1 case: fetal abdomen</title>" in page
    assert "<h1>1 case</h1>" in page


def test_the_table_filters_by_verdict_and_words(browser, cohort):
    """Failed ones alone, then what holds both words in any column; how many are shown is said."""
    browser.open(cohort / "index.html")
    browser.click("[data-state='failed']")
    assert cases(browser) == [HOSTILE.replace("/", "_")]
    assert browser.text("#shown") == "1 of 4 shown"
    browser.click("[data-state='all']")
    browser.write("#find", "assumed 0.28")
    assert cases(browser) == ["case 9"]
    assert browser.run("[...document.querySelectorAll('.states button')].map((b) => b.innerText)") == [
        "All 4", "Suitable 2", "Not suitable 1", "Failed 1",
    ]  # fmt: skip


def test_a_case_leads_to_its_page(browser, cohort):
    """Also one whose name has signs that mean something in an address; a failed case has no link."""
    browser.open(cohort / "index.html")
    browser.click("#cases tbody tr:nth-child(3) th a")
    browser.wait_until("document.title === 'page of ü & #%'")
    browser.open(cohort / "index.html")
    assert browser.run("document.querySelectorAll('#cases tbody tr:nth-child(4) a').length") == 0


def test_centiles_and_thumbnails_are_there(browser, cohort):
    """A centile below 1 is not shown as 0; the pictures are part of the page."""
    browser.open(cohort / "index.html")
    assert "43" in browser.text("#cases tbody tr:nth-child(1)")
    assert "< 1" in browser.text("#cases tbody tr:nth-child(2)")
    widths = "[...document.querySelectorAll('.thumbnail img')].map((image) => image.naturalWidth)"
    assert browser.run(widths) == [192] * 3
    assert browser.requests() == [(cohort / "index.html").as_uri()]


def test_a_phone_shows_the_table_without_scrolling_sideways(browser, cohort):
    """390 pixels wide, names and notes and all."""
    browser.look(390, 844, touch=True)
    browser.open(cohort / "index.html")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run("document.querySelector('.scroll').scrollWidth") <= 390
    browser.look(1200, 800)


def test_a_case_without_a_page_has_a_picture_that_leads_nowhere(tmp_path):
    """As after a run without pages that `--resume` finds complete: no link, not even one to nothing."""
    (tmp_path / "case 9").mkdir()
    cv2.imwrite(str(tmp_path / "case 9" / "preview.png"), np.full((900, 1000, 3), 90, np.uint8))
    text = cohort_page(tmp_path, [row("case 9", 99.5)])
    assert text.count("data:image/jpeg") == 1
    assert '<td class="thumbnail"><img ' in text
    assert 'href="None"' not in text


def test_a_very_large_cohort_is_cut_and_says_so(tmp_path):
    """The first 5,000, and how many more the table has; no pictures then."""
    text = cohort_page(tmp_path, [row(f"case {number}", 200.0) for number in range(MOST_ROWS + 7)])
    assert text.count("<tr data-state") == MOST_ROWS
    assert "7 more are in results.csv" in text
    assert "<img" not in text
    assert "Centile" not in text
