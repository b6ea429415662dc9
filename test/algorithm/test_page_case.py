"""`report.html`: opened in a real browser, used by mouse, keys and finger, and safe with hostile names."""

import base64
import dataclasses
import hashlib
import json
import math
import re
import shutil

import numpy as np
import pytest
import SimpleITK

from acouslic.ellipse import Ellipse, circumference_mm, draw_ellipse
from acouslic.errors import AcouslicError
from acouslic.stack import StackHeader, open_stack
from algorithm.amend import amend
from algorithm.model.manifest import Thresholds
from algorithm.page.case_page import axis_ends_px, case_page, choose_runners_up, write_case_page
from algorithm.page.cohort_page import cohort_page
from algorithm.page.pictures import read_pictures
from algorithm.result.growth import centile_words, judge_growth, parse_age
from algorithm.result.outputs import CaseResult, write_result
from algorithm.result.table import ResultRow

ROWS, COLUMNS, FRAMES, CHOSEN = 90, 120, 300, 45
HOSTILE = "<script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\">{{ 7 * 7 }}"


def write_stack(path, spacing_mm=(0.6, 0.6)):
    """Three sweeps (140, 140, 20) of 90 x 120, each frame with a bar as long as its number says."""
    frames = np.full((FRAMES, ROWS, COLUMNS), 40, np.uint8)
    for index, frame in enumerate(frames):
        frame[40:50, : 1 + index * COLUMNS // FRAMES] = 220
    image = SimpleITK.GetImageFromArray(frames)
    image.SetSpacing((spacing_mm[1], spacing_mm[0], 1.0))
    SimpleITK.WriteImage(image, str(path), True)
    return open_stack(path).header


def result_of(header: StackHeader, **changes) -> CaseResult:
    """An abdomen in frame 45 of sweep 1, less clear ones in frames 200 and 290, and an age."""
    at = np.arange(header.frames)
    peaks = ((CHOSEN, 0.96), (200, 0.7), (290, 0.4))
    presence = np.max([height * np.exp(-(((at - centre) / 6.0) ** 2)) for centre, height in peaks], axis=0)
    ellipse = Ellipse((60.0, 45.0), (30.0, 22.0), 20.0)
    measured_mm = circumference_mm(ellipse, header.spacing_mm)
    interval_mm = (measured_mm - 2, measured_mm + 3)
    result = CaseResult(
        case="case 7",
        header=header,
        frame_index=CHOSEN,
        suitable=True,
        mask=draw_ellipse(ellipse, header.rows, header.columns),
        ellipse=ellipse,
        circumference_mm=measured_mm,
        interval_mm=interval_mm,
        presence_probability=presence,
        presence_alone_probability=presence * 0.9,
        optimality_probability=presence * 0.5,
        refined=np.ones(header.frames, dtype=bool),
        thresholds=Thresholds(),
        notes=("something is odd",),
        growth=judge_growth(measured_mm, interval_mm, parse_age("15w4d")),
    )
    return dataclasses.replace(result, **changes)


@pytest.fixture(scope="module")
def case_dir(tmp_path_factory):
    """A case's folder with its files and its page."""
    folder = tmp_path_factory.mktemp("page") / "case 7"
    folder.mkdir()
    result = result_of(write_stack(folder.parent / "case 7.mha"))
    write_result(result, folder)
    write_case_page(result, folder)
    return folder


@pytest.fixture
def page(browser, case_dir):
    """The page, newly opened on a desktop."""
    browser.look(1400, 900)
    browser.open(case_dir / "report.html")
    return browser


def shown(browser):
    """The frame that the viewer shows, by its own account and by the slider's; they agree."""
    frame = int(browser.run("document.getElementById('viewer').dataset.frame"))
    assert int(browser.run("document.getElementById('position').value")) == frame
    return frame


def bar_length(browser):
    """The length of the bar in the picture shown, in pixels of the frame: what is really seen."""
    return browser.run(
        "(async () => { const image = document.getElementById('picture'); await image.decode();"
        "const canvas = document.createElement('canvas'); canvas.width = 120; canvas.height = 90;"
        "const context = canvas.getContext('2d'); context.drawImage(image, 0, 0, 120, 90);"
        "const row = context.getImageData(0, 45, 120, 1).data;"
        "let length = 0; for (let x = 0; x < 120; x += 1) length += row[4 * x] > 128; return length; })()"
    )


def test_the_page_shows_the_result_and_loads_nothing(page, case_dir):
    """The chosen frame with its outline, millimetres, interval, centile, notes; no complaint, no request but itself."""
    result = result_of(open_stack(case_dir.parent / "case 7.mha").header)
    assert shown(page) == CHOSEN
    assert bar_length(page) == pytest.approx(1 + CHOSEN * COLUMNS // FRAMES, abs=1)
    assert page.text(".result .number") == f"{result.circumference_mm:.1f} mm"
    low, high = result.interval_mm
    assert f"{low:.1f} to {high:.1f} mm" in page.text(".result")
    assert centile_words(result.growth.centile).lower() in page.text(".growth").lower()
    assert "weak:" in page.text(".growth .weak").lower()
    assert "no diagnosis" in page.text(".growth")
    assert "Something is odd." in page.text(".notes")
    assert page.text(".verdict").endswith("Suitable")
    assert page.run("getComputedStyle(document.querySelector('#model-overlay .model')).stroke") == "rgb(255, 194, 77)"
    assert page.run("document.querySelectorAll('#model-overlay .axis').length") == 2
    assert page.run("document.querySelector('#model-overlay .mask').getTotalLength()") > 100
    assert page.complaints() == []
    assert page.requests() == [(case_dir / "report.html").as_uri()]


def test_keys_move_through_the_frames(page):
    """Arrows, with Shift ten at once, Home, End, a sweep's number, the chosen frame; never past the ends."""
    page.run("document.getElementById('viewer').focus()")
    for key, shift, frame in [
        ("ArrowRight", False, 46), ("ArrowLeft", False, 45), ("ArrowRight", True, 55), ("End", False, 139),
        ("ArrowRight", False, 140), ("Home", False, 140), ("3", False, 280), ("End", False, 299),
        ("ArrowRight", False, 299), ("1", False, 0), ("ArrowLeft", True, 0), ("c", False, CHOSEN),
    ]:  # fmt: skip
        page.press(key, shift=shift)
        assert shown(page) == frame, key
    assert page.run("getComputedStyle(document.getElementById('model-overlay')).display") != "none"
    page.press("ArrowRight")
    assert page.run("getComputedStyle(document.getElementById('model-overlay')).display") == "none"


def test_keys_move_through_a_stack_of_which_few_frames_have_a_picture(browser, tmp_path):
    """Every third, and some in full size between them, where nothing sticks; a sweep begins with its own first one."""
    result = result_of(write_stack(tmp_path / "x.mha"))
    pictures = read_pictures(result.header, [CHOSEN, 46, 47])
    few = dataclasses.replace(pictures, reduced=pictures.reduced[::3], step=3)
    (tmp_path / "report.html").write_text(case_page(result, few, [], "0" * 64))
    browser.look(1400, 900)
    browser.open(tmp_path / "report.html")
    browser.run("document.getElementById('viewer').focus()")
    for key, frame in [
        ("ArrowRight", 46), ("ArrowRight", 47), ("ArrowRight", 48), ("ArrowRight", 51), ("ArrowLeft", 48),
        ("ArrowLeft", 47), ("End", 138), ("ArrowRight", 141), ("Home", 141), ("1", 0), ("2", 141), ("3", 282),
        ("End", 297), ("ArrowRight", 297),
    ]:  # fmt: skip
        browser.press(key)
        assert shown(browser) == frame, key


def test_the_slider_is_a_slider_to_keyboard_and_screen_reader(page):
    """It takes the focus, moves by keys, and says frame, sweep and presence."""
    page.run("document.getElementById('position').focus()")
    page.press("ArrowRight")
    assert shown(page) == 46
    words = page.run("document.getElementById('position').getAttribute('aria-valuetext')")
    assert re.fullmatch(r"frame 46, sweep 1, presence 0\.\d\d", words)
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    names = {(node["role"]["value"], node["name"]["value"]) for node in nodes if "name" in node and "role" in node}
    assert ("slider", "Frame") in names
    assert "abdominal circumference" in [name.lower() for role, name in names if role == "heading"]
    for role in ("button", "slider", "textbox"):
        assert all(name for found, name in names if found == role)


def test_mouse_wheel_and_curve_move_through_the_frames(page):
    """A drag over the picture, the wheel, and a click into the curve at five sixths of its width."""
    x, y = page.centre("#viewer")
    page.drag((x, y), (x + 100, y))
    moved = shown(page)
    assert moved > CHOSEN + 5
    page.drag((x, y), (x - 100, y))
    assert shown(page) == CHOSEN
    page.wheel("#viewer", 120)
    page.wait_until(f"document.getElementById('viewer').dataset.frame === '{CHOSEN + 1}'")
    left, top, width, height = page.run(
        "(() => { const box = document.querySelector('.plot').getBoundingClientRect();"
        "return [box.x, box.y, box.width, box.height]; })()"
    )
    point = (left + width * 5 / 6, top + height / 2)
    page.drag(point, point)
    assert shown(page) == pytest.approx(250, abs=2)


def test_a_finger_moves_through_the_frames_of_a_phone(browser, case_dir):
    """A swipe over the picture; nothing is wider than a window of 390 pixels, and buttons are large enough."""
    browser.look(390, 844, touch=True)
    browser.open(case_dir / "report.html")
    x, y = browser.centre("#viewer")
    browser.swipe((x - 60, y), (x + 60, y))
    assert shown(browser) > CHOSEN + 20
    assert browser.run("document.documentElement.scrollWidth") <= 390
    heights = browser.run(
        "[...document.querySelectorAll('.tools button')].map((b) => b.getBoundingClientRect().height)"
    )
    assert min(heights) >= 40


def test_playing_ends_with_the_sweep(page):
    """Play goes on frame by frame and stops at the sweep's last one."""
    page.run("document.getElementById('viewer').focus()")
    page.press("End")
    for _ in range(3):
        page.press("ArrowLeft")
    page.click("#play")
    page.wait_until("document.getElementById('viewer').dataset.frame === '139'")
    page.wait_until("document.getElementById('play').getAttribute('aria-pressed') === 'false'")


def test_runners_up_stand_beside_the_chosen_frame(page):
    """A click on the first of them shows it next to the chosen frame and its outline."""
    frames = page.run("[...document.querySelectorAll('.runner')].map((runner) => Number(runner.dataset.frame))")
    assert frames[:2] == [200, 290]
    page.click(".runner")
    assert shown(page) == 200
    assert page.run("document.getElementById('compared').hidden") is False
    left, right = page.run("[...document.querySelectorAll('.pane .frame')].map((f) => f.getBoundingClientRect().width)")
    assert left == pytest.approx(right, abs=2)


def measured(browser):
    return float(browser.run("document.getElementById('hand-mm').textContent"))


def save(browser, folder, name="correction-case_7.json"):
    """Save the correction and read the file that the browser wrote."""
    browser.save_downloads(folder)
    browser.run("document.getElementById('reader').value = ''")
    browser.write("#reader", "AB")
    browser.click("#save")
    path = folder / name
    browser.wait_until("true")
    for _ in range(500):
        if path.exists() and path.stat().st_size:
            break
        browser.run("new Promise((done) => setTimeout(done, 20))")
    return json.loads(path.read_text())


def test_the_ellipse_is_measured_by_hand(page, case_dir, tmp_path):
    """It starts as the model's; a drag of one end changes the number as `acouslic.ellipse` has it; the file tells
    frame, ends, millimetres and whose result it corrects."""
    result = result_of(open_stack(case_dir.parent / "case 7.mha").header)
    page.click("#measure")
    assert measured(page) == pytest.approx(result.circumference_mm, abs=0.051)
    x, y = page.centre("[data-axis='0'][data-end='1'] .grip")
    page.drag((x, y), (x + 40, y + 10))
    scale = page.run("document.getElementById('viewer').clientWidth") / COLUMNS
    correction = save(page, tmp_path)
    (fixed, moved), _ = correction["axis_ends_px"]
    (start_fixed, start_moved), _ = axis_ends_px(result)
    assert fixed == pytest.approx(start_fixed, abs=0.01)
    assert moved == pytest.approx((start_moved[0] + 40 / scale, start_moved[1] + 10 / scale), abs=0.3)
    semi_axes = [math.dist(*axis) / 2 for axis in correction["axis_ends_px"]]
    expected_mm = circumference_mm(Ellipse((0, 0), tuple(semi_axes), 0), (0.6, 0.6))
    assert correction["circumference_mm"] == pytest.approx(expected_mm, abs=1e-3)
    assert measured(page) == pytest.approx(expected_mm, abs=0.051)
    assert correction["frame_number"] == CHOSEN
    assert correction["reader"] == "AB"
    content = (case_dir / "fetal-abdominal-circumference.json").read_bytes()
    assert correction["result_sha256"] == hashlib.sha256(content).hexdigest()
    assert page.complaints() == []


def test_the_ellipse_is_measured_by_keys_on_another_frame(page, case_dir, tmp_path):
    """The end of an axis takes the focus and moves a pixel a key, ten with Shift; the second axis keeps its length and
    stays at right angles. The frame is the one that is shown. `amend` takes the file up."""
    page.run("document.getElementById('viewer').focus()")
    page.press("ArrowRight")
    page.click("#measure")
    before = measured(page)
    page.run("document.querySelector(\"[data-axis='1'][data-end='0']\").focus()")
    page.press("ArrowUp", shift=True)
    page.press("ArrowUp")
    assert measured(page) != before
    correction = save(page, tmp_path)
    first, second = (np.array(axis) for axis in correction["axis_ends_px"])
    assert correction["frame_number"] == CHOSEN + 1
    assert (first[1] - first[0]) @ (second[1] - second[0]) == pytest.approx(0, abs=0.1)
    assert np.linalg.norm(first[1] - first[0]) / 2 == pytest.approx(30, abs=0.01)
    assert first.mean(0) == pytest.approx(second.mean(0), abs=0.01)
    assert page.text("#spoken") == "The correction was saved"
    folder = amend(shutil.copytree(case_dir, tmp_path / "copy"), tmp_path / "correction-case_7.json")
    amended = json.loads((folder / "fetal-abdominal-circumference.json").read_text())
    assert amended["frame_number"] == CHOSEN + 1
    assert amended["circumference_mm"] == pytest.approx(correction["circumference_mm"], abs=0.001)


def test_the_space_bar_on_an_end_of_an_axis_plays_nothing(page):
    """A screen reader calls the end a button; the frame that is measured stays."""
    page.click("#measure")
    page.run("document.querySelector(\"[data-axis='0'][data-end='0']\").focus()")
    page.press(" ")
    page.run("new Promise((done) => setTimeout(done, 200))")
    assert page.run("document.getElementById('play').getAttribute('aria-pressed')") == "false"
    assert shown(page) == CHOSEN


def test_a_comment_may_have_been_pasted(page, case_dir, tmp_path):
    """What is no letter to see, such as a space that does not break or a mark of direction, becomes a space: `amend`
    would refuse the file."""
    page.click("#measure")
    page.write("#comment", "the\u00a0stomach\u200f was\u2028missed ")
    assert save(page, tmp_path)["comment"] == "the stomach was missed"
    folder = amend(shutil.copytree(case_dir, tmp_path / "copy"), tmp_path / "correction-case_7.json")
    assert json.loads((folder / "amendment.json").read_text())["comment"] == "the stomach was missed"


def test_a_finger_moves_the_ellipse(browser, case_dir):
    """On a phone: the end of an axis follows the finger, the frame stays."""
    browser.look(390, 844, touch=True)
    browser.open(case_dir / "report.html")
    browser.click("#measure")
    before = measured(browser)
    x, y = browser.centre("[data-axis='0'][data-end='1'] .grip")
    browser.swipe((x, y), (x + 30, y + 10))
    assert measured(browser) > before + 2
    assert shown(browser) == CHOSEN


def test_the_enlarged_picture_is_moved_and_measured_on(page, tmp_path):
    """Twice the size around the ellipse; a drag moves the picture instead of the frame, never past its edge; an end of
    an axis follows the mouse at half the pace."""
    page.click("#measure")
    page.click("#zoom")
    width, shown_width = page.run(
        "['#picture', '#viewer'].map((name) => document.querySelector(name).getBoundingClientRect().width)"
    )
    assert width == pytest.approx(2 * shown_width, abs=1)
    x, y = page.centre("#viewer")
    page.drag((x, y), (x + 3000, y + 3000))
    left_top = "(() => { const [a, b] = ['#picture', '#viewer'].map((n) => document.querySelector(n)"
    left_top += ".getBoundingClientRect()); return [a.x - b.x, a.y - b.y]; })()"
    assert page.run(left_top) == pytest.approx([0, 0], abs=0.5)
    assert shown(page) == CHOSEN
    before = save(page, tmp_path)["axis_ends_px"][0][0]
    x, y = page.centre("[data-axis='0'][data-end='0'] .grip")
    page.drag((x, y), (x - 20, y))
    (tmp_path / "correction-case_7.json").unlink()
    after = save(page, tmp_path)["axis_ends_px"][0][0]
    assert before[0] - after[0] == pytest.approx(20 * COLUMNS / width, abs=0.2)
    assert before[1] == pytest.approx(after[1], abs=0.2)
    page.click("#zoom")
    assert page.run("document.querySelector('#picture').style.transform") == ""


def test_without_initials_nothing_is_saved(page, tmp_path):
    """The page asks for them, and takes no spaces, which a name would have."""
    page.save_downloads(tmp_path)
    page.click("#measure")
    page.click("#save")
    assert "Give your initials first" in page.text("#hand-warning")
    page.write("#reader", "Jane Doe")
    page.click("#save")
    assert "Give your initials first" in page.text("#hand-warning")
    assert list(tmp_path.iterdir()) == []


def test_pixels_that_are_not_square_are_measured_in_millimetres(browser, tmp_path):
    """0.2 x 0.5 mm: shown as wide as they are, and measured by hand as `circumference_mm` does."""
    header = write_stack(tmp_path / "wide.mha", spacing_mm=(0.2, 0.5))
    result = result_of(header)
    assert result.circumference_mm == circumference_mm(result.ellipse, (0.2, 0.5))
    pictures = read_pictures(header, [CHOSEN])
    (tmp_path / "report.html").write_text(case_page(result, pictures, [], "0" * 64))
    browser.look(1400, 900)
    browser.open(tmp_path / "report.html")
    width, height = browser.run(
        "(() => { const v = document.getElementById('viewer'); return [v.clientWidth, v.clientHeight] })()"
    )
    assert width / height == pytest.approx(COLUMNS * 0.5 / (ROWS * 0.2), rel=0.01)
    browser.click("#measure")
    assert measured(browser) == pytest.approx(result.circumference_mm, abs=0.051)


def test_a_case_without_a_frame_shows_the_nearest_and_can_be_measured(browser, tmp_path):
    """Not suitable, nothing measured: the page says so, and an ellipse by hand starts in the middle."""
    header = write_stack(tmp_path / "x.mha")
    empty = {"mask": np.zeros((ROWS, COLUMNS), bool), "ellipse": None, "circumference_mm": None, "interval_mm": None}
    result = result_of(header, frame_index=None, suitable=False, growth=None, optimality_probability=None, **empty)
    (tmp_path / "report.html").write_text(case_page(result, read_pictures(header, []), [], "0" * 64))
    browser.look(1000, 800)
    browser.open(tmp_path / "report.html")
    assert shown(browser) == CHOSEN
    assert browser.text(".verdict").endswith("Not suitable")
    assert "Not measured" in browser.text(".result")
    assert "do not rely on this" in browser.text(".notes")
    browser.click("#measure")
    assert measured(browser) > 0
    assert browser.complaints() == []


def test_a_case_that_was_not_measured_gets_its_centile_by_hand(browser, tmp_path):
    """At an age of the standard the page says that nothing was measured, not that the standard has no such age; an
    ellipse by hand gets its centile there."""
    header = write_stack(tmp_path / "x.mha")
    empty = {"mask": np.zeros((ROWS, COLUMNS), bool), "ellipse": None, "circumference_mm": None, "interval_mm": None}
    result = result_of(header, suitable=False, growth=judge_growth(None, None, parse_age("15w4d")), **empty)
    (tmp_path / "report.html").write_text(case_page(result, read_pictures(header, []), [], "0" * 64))
    browser.look(1400, 900)
    browser.open(tmp_path / "report.html")
    assert "No centile: nothing was measured." in browser.text(".growth")
    browser.click("#measure")
    by_hand = judge_growth(measured(browser), None, parse_age("15w4d"))
    said = f"The model measured nothing; frame {CHOSEN}, {centile_words(by_hand.centile)}."
    assert browser.text("#hand-difference") == said


def test_dark_light_and_print(browser, case_dir):
    """Dark where the system is, unless the reader wants light; on paper white, with everything but the controls."""

    def ground():
        return browser.run("getComputedStyle(document.body).backgroundColor")

    browser.look(1200, 900, scheme="light")
    browser.open(case_dir / "report.html")
    light = ground()
    browser.look(1200, 900, scheme="dark")
    dark = ground()
    assert light != dark
    browser.click("#theme")
    assert ground() == light
    browser.click("#theme")
    browser.look(794, 1123, scheme="dark", medium="print")
    assert ground() == "rgb(255, 255, 255)"
    hidden = "getComputedStyle(document.querySelector('.tools')).display"
    assert browser.run(hidden) == "none"
    assert browser.run("document.querySelector('.result').getBoundingClientRect().height") > 50
    assert browser.run("document.documentElement.scrollWidth") <= 794
    browser.look(1200, 900)


def test_a_result_without_an_interval_says_so(tmp_path):
    """No bar and no sentence about its ends, but why there is none."""
    header = write_stack(tmp_path / "x.mha")
    growth = judge_growth(98.6, None, parse_age("15w4d"))
    text = case_page(result_of(header, interval_mm=None, growth=growth), read_pictures(header, [CHOSEN]), [], "0" * 64)
    assert "No interval: there is no second outline" in text
    assert 'class="interval"' not in text
    assert "of the interval" not in text


@pytest.mark.parametrize("paper_inches", [(8.27, 11.69), (8.5, 11)])
def test_a_print_is_one_sheet_with_every_caveat(paper_inches, browser, tmp_path):
    """A4 and Letter, of a case that is not suitable, with an age, three notes and five runners-up: the warning, the
    notes and what a centile is not are on the sheet."""
    header = write_stack(tmp_path / "x.mha")
    notes = tuple(f"{number}: something is odd, and a sentence says in some words what it is" for number in range(3))
    result = result_of(header, suitable=False, notes=notes)
    runners_up = choose_runners_up(result, CHOSEN)
    assert len(runners_up) == 5
    (tmp_path / "report.html").write_text(case_page(result, read_pictures(header, [CHOSEN]), runners_up, "0" * 64))
    browser.look(1400, 900)
    browser.open(tmp_path / "report.html")
    paper = dict(zip(("paperWidth", "paperHeight"), paper_inches, strict=True))
    printed = base64.b64decode(browser.send("Page.printToPDF", printBackground=True, **paper)["data"])
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1
    browser.look(720, 1000, medium="print")
    assert "It is no diagnosis" in browser.text("main")
    assert "do not rely on this" in browser.text("main")
    browser.look(1200, 900)


@pytest.mark.parametrize(
    ("age", "said"),
    [
        ("15w4d", r"The ends of the interval lie (at|above) the \d+\w\w centile and (at|above) the \d+\w\w centile\."),
        ("30w0d", r"Both ends of the interval lie below the 1st centile\."),
    ],
)
def test_the_centiles_of_the_interval_are_told_in_a_sentence(age, said, tmp_path):
    """Two that are the same are told once."""
    header = write_stack(tmp_path / "x.mha")
    made = result_of(header)
    result = result_of(header, growth=judge_growth(made.circumference_mm, made.interval_mm, parse_age(age)))
    text = case_page(result, read_pictures(header, [CHOSEN]), [200], "0" * 64)
    assert re.search(said, text)


@pytest.mark.parametrize(
    ("circumference_mm", "centile", "short", "suggested"),
    [
        (222.62, "9th centile", "9", "26w5d"),
        (210.75, "below the 1st centile", "&lt; 1", "25w4d"),
        (180.9, "below the 1st centile", "&lt; 1", "23w0d"),
    ],
)
def test_page_line_and_table_say_the_same_centile_and_age(circumference_mm, centile, short, suggested, tmp_path):
    """9.455 is the 9th centile everywhere, not the 10th where a table has rounded it to 9.5 first; 0.95 is below the
    1st; the age is the same to the day."""
    header = write_stack(tmp_path / "x.mha")
    interval_mm = (circumference_mm - 1, circumference_mm + 1)
    growth = judge_growth(circumference_mm, interval_mm, parse_age("28w3d"))
    result = result_of(header, circumference_mm=circumference_mm, interval_mm=interval_mm, growth=growth)
    row = ResultRow.of(result, 1.0)
    page = case_page(result, read_pictures(header, [CHOSEN]), [], "0" * 64)
    assert f"<strong>{centile[:1].upper()}{centile[1:]}</strong>" in page
    assert f"suggests {suggested}, give" in page
    assert f", {centile} at 28w3d, alone it suggests {suggested} (weak" in row.sentence()
    assert f">{short}</td>" in cohort_page(tmp_path, [row])


def test_what_comes_from_outside_is_shown_as_text(browser, tmp_path):
    """A case and a note that try to run something: shown as they are, not run, not even by a page without policy."""
    header = write_stack(tmp_path / "x.mha")
    result = result_of(header, case=HOSTILE, notes=(HOSTILE,))
    text = case_page(result, read_pictures(header, [CHOSEN]), [200], "0" * 64)
    assert "<img src=x" not in text
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert without_policy != text
    for content in (text, without_policy):
        (tmp_path / "report.html").write_text(content)
        browser.look(1200, 900)
        browser.open(tmp_path / "report.html")
        assert browser.text("h1") == " ".join(HOSTILE.split())
        assert HOSTILE[1:] in browser.text(".notes")
        assert "owned" not in browser.run("document.title").replace(HOSTILE, "")
        assert browser.complaints() == []


def test_the_policy_stops_what_is_not_ours(browser, case_dir, tmp_path):
    """A script and a style that were put into the page do nothing: the policy names ours by their hashes."""
    text = (case_dir / "report.html").read_text()
    added = "<script>document.title='owned'</script><style>body { display: none }</style></body>"
    (tmp_path / "report.html").write_text(text.replace("</body>", added))
    browser.open(tmp_path / "report.html")
    assert browser.run("document.title") != "owned"
    assert browser.run("getComputedStyle(document.body).display") == "block"
    assert len(browser.complaints()) == 2


def test_a_page_of_noise_stays_below_fifteen_megabytes(tmp_path):
    """Noise compresses worst: 840 frames of 562 x 744 are then reduced more, until all of them fit."""
    frames = np.tile(np.random.default_rng(0).integers(0, 256, (20, 562, 744), dtype=np.uint8), (42, 1, 1))
    image = SimpleITK.GetImageFromArray(frames)
    SimpleITK.WriteImage(image, str(tmp_path / "noise.mha"), False)
    header = open_stack(tmp_path / "noise.mha").header
    pictures = read_pictures(header, range(40))
    assert len(pictures.reduced) == 840
    assert pictures.reduced_by > 2
    assert 1 < len(pictures.full) < 40
    assert list(pictures.full) == list(range(len(pictures.full)))
    small = result_of(write_stack(tmp_path / "x.mha"))
    wide = dataclasses.replace(small.header, frames=840, rows=562, columns=744)
    presence = np.resize(small.presence_probability, 840)
    result = dataclasses.replace(
        small,
        header=wide,
        presence_probability=presence,
        presence_alone_probability=presence,
        optimality_probability=presence,
    )
    assert len(case_page(result, pictures, [], "0" * 64).encode()) < 15_000_000


def test_a_stack_that_changed_meanwhile_is_refused(tmp_path):
    """Another number of frames than was analysed: said, instead of a page of other frames."""
    header = write_stack(tmp_path / "x.mha")
    with pytest.raises(AcouslicError, match="was changed while it was analysed"):
        read_pictures(dataclasses.replace(header, frames=FRAMES - 1), [])


def test_runners_up_lie_apart_and_show_something(tmp_path):
    """At least 20 frames from each other within a sweep, best first, never the frame shown, never one of 0."""
    result = result_of(write_stack(tmp_path / "x.mha"))
    runners_up = choose_runners_up(result, CHOSEN)
    assert runners_up[:2] == [200, 290]
    assert len(runners_up) == 5
    frames = [CHOSEN, *runners_up]
    assert all(abs(a - b) >= 20 for a in frames for b in frames if a != b and a // 140 == b // 140)
    nothing = dataclasses.replace(result, presence_probability=np.eye(FRAMES)[CHOSEN])
    assert choose_runners_up(nothing, CHOSEN) == []
