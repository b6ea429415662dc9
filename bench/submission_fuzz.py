"""Damaged submissions, thousands of them: each is refused in one clear sentence, or is scored.

    python -m bench.submission_fuzz                  2,600 submissions, about a minute of one core
    python -m bench.submission_fuzz --count 200 --seed 7

A fault is anything else: an error that is not for the user, a sentence that is long or not printable, a result that is
not finite, a file opened outside of the phase, more than LONGEST_S. Damage goes into `predictions.json`, the frame
number, the score file, the mask's header, its pixels, a mask in TIFF, what `predict` says of its own result, and the
folder itself. The last line is a JSON object; the exit code is 1 where there are faults. The same seed gives the same
damage.
"""

import argparse
import copy
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import tifffile

from acouslic.errors import AcouslicError
from acouslic.release import SWEEP_COLUMNS
from acouslic.sockets import CIRCUMFERENCE_FILE, FRAME_NUMBER_FILE, SCORES_FILE
from acouslic.write import write_json, write_mask_stack
from bench.setting.command import add_seed, at_least, exit_with
from evaluation.__main__ import one_line
from evaluation.case_evaluation import CaseTask, evaluate_case
from evaluation.inputs.ground_truth import find_official
from evaluation.inputs.predictions import check_cases, read_local_prediction, read_platform_predictions
from evaluation.metrics.case_result import CaseResult

SEED = 20260716
LONGEST_S = 20.0
"""For one submission. A sound one takes 0.01 s; a busy machine must not make a fault."""
_LONGEST_SENTENCE = 2000
_FRAMES, _ROWS, _COLUMNS, _CHOSEN = 150, 40, 60, 50
_CODE = (".py", ".pyc", ".so")
"""What Python opens for itself, to import a decoder when it is first needed."""
_HEADER_END = b"ElementDataFile = LOCAL\n"

HOSTILE: list[Any] = [
    None, True, -1, 0, 10**30, -(10**18), 3.5, 1e308, "", "..", "../..", "/etc/passwd", "a/b", "\0", "\n", "é",
    "\x1b[2J", "\ud800", "x" * 2000, [], {}, [[]], {"slug": 5}, "Succeeded", "case-a", "case-a.mha", 50, 149, 150, "50",
]  # fmt: skip

_opened: list[str] | None = None
_watching = False


class Phase:
    """One sound submission of one case of 150 frames of 40 x 60, in a folder of its own, and its reference."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.truth_dir, self.input_dir = root / "truth", root / "input"
        self.output_dir = self.input_dir / "job" / "output"
        self.predictions = self.input_dir / "predictions.json"
        self.frame_number = self.output_dir / FRAME_NUMBER_FILE
        self.scores = self.output_dir / SCORES_FILE
        self.judgement = self.output_dir / CIRCUMFERENCE_FILE
        self.mask = self.output_dir / "images/fetal-abdomen-segmentation/output.mha"
        self.tiff = self.mask.with_suffix(".tif")
        rows, columns = np.mgrid[:_ROWS, :_COLUMNS]
        self.disc = ((columns - 30) / 14) ** 2 + ((rows - 20) / 10) ** 2 <= 1

    def write(self) -> None:
        """The files as they are before anything is damaged."""
        shutil.rmtree(self.root, ignore_errors=True)
        sound = self.root.with_name(f"{self.root.name}-sound")
        if not sound.exists():
            self._write_sound()
            shutil.copytree(self.root, sound)
        else:
            shutil.copytree(sound, self.root)

    def _write_sound(self) -> None:
        stack = (self.disc, _CHOSEN, _FRAMES, (0.28, 0.28))
        write_mask_stack(self.truth_dir / "case-a/fetal_abdomen_stacked_masks/case-a.mha", *stack)
        circumferences = dict.fromkeys(SWEEP_COLUMNS) | {SWEEP_COLUMNS[0]: 20.0}
        write_json(self.truth_dir / "case-a/fetal_abdominal_circumference.json", circumferences)
        write_mask_stack(self.mask, *stack)
        write_json(self.frame_number, _CHOSEN)
        scores = {
            "schema_version": 1,
            "frames": _FRAMES,
            "thresholds": {"presence": 0.5, "optimality": 0.5, "suitable": 0.5},
            "presence_probability": [0.25] * _FRAMES,
            "presence_alone_probability": [0.25] * _FRAMES,
            "optimality_probability": [0.5] * _FRAMES,
        }
        write_json(self.scores, scores)
        write_json(self.judgement, {"schema_version": 1, "suitable": True, "interval_mm": [19.0, 21.0]})
        mask_socket = {"slug": "fetal-abdomen-segmentation", "relative_path": "images/fetal-abdomen-segmentation"}
        number_socket = {"slug": "fetal-abdomen-frame-number", "relative_path": FRAME_NUMBER_FILE}
        job = {
            "pk": "job",
            "inputs": [{"socket": {"slug": "stacked-fetal-ultrasound"}, "image": {"name": "case-a.mha"}}],
            "outputs": [{"socket": number_socket, "value": None}, {"socket": mask_socket}],
            "status": "Succeeded",
            "exec_duration": "P0DT00H00M42.5S",
        }
        write_json(self.predictions, [job])

    def write_tiff(self) -> None:
        """The mask as a compressed TIFF in place of the `.mha`."""
        stack = np.zeros((_FRAMES, _ROWS, _COLUMNS), np.uint8)
        stack[_CHOSEN] = self.disc
        self.mask.unlink()
        tifffile.imwrite(self.tiff, stack, compression="zlib", photometric="minisblack")


def damage_predictions(rng: random.Random, phase: Phase) -> None:
    """`predictions.json`, its bytes or its structure."""
    _damage_json(rng, phase.predictions)


def damage_scores(rng: random.Random, phase: Phase) -> None:
    """`frame-quality-scores.json`."""
    _damage_json(rng, phase.scores)


def damage_frame_number(rng: random.Random, phase: Phase) -> None:
    """The file of the frame number."""
    _damage_json(rng, phase.frame_number)


def damage_judgement(rng: random.Random, phase: Phase) -> None:
    """What `predict` says of its own result, which a local evaluation reads."""
    _damage_json(rng, phase.judgement)


def damage_mask_header(rng: random.Random, phase: Phase) -> None:
    """The text header of the mask, its pixels kept."""
    header, separator, pixels = phase.mask.read_bytes().partition(_HEADER_END)
    phase.mask.write_bytes(damage_bytes(rng, header + separator) + pixels)


def damage_mask_pixels(rng: random.Random, phase: Phase) -> None:
    """The compressed pixels, the header kept."""
    header, separator, pixels = phase.mask.read_bytes().partition(_HEADER_END)
    phase.mask.write_bytes(header + separator + damage_bytes(rng, pixels))


def damage_tiff(rng: random.Random, phase: Phase) -> None:
    """A mask in TIFF: its directories and its compressed pixels."""
    phase.write_tiff()
    phase.tiff.write_bytes(damage_bytes(rng, phase.tiff.read_bytes()))


def damage_folder(rng: random.Random, phase: Phase) -> None:
    """A file or folder that is gone, a link, a pipe, a folder, doubled, empty, or cut."""
    files = [phase.predictions, phase.frame_number, phase.scores, phase.judgement, phase.mask, phase.mask.parent]
    path = rng.choice(files)
    kind = rng.choice(("gone", "out", "circle", "broken", "pipe", "folder", "doubled", "empty", "cut"))
    content = path.read_bytes() if path.is_file() else b"nothing"
    copied = phase.root / "elsewhere"
    shutil.copytree(path, copied) if path.is_dir() else shutil.copy(path, copied)
    if kind == "doubled":
        (path.parent / f"second{path.suffix}").write_bytes(content)
        return
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if kind in ("out", "circle", "broken"):
        path.symlink_to({"out": copied, "circle": path, "broken": phase.root / "nowhere"}[kind])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "gone":
        path.write_bytes(b"" if kind == "empty" else content[: rng.randrange(len(content))])


KINDS: dict[Callable[[random.Random, Phase], None], int] = {
    damage_predictions: 9,
    damage_scores: 5,
    damage_mask_header: 4,
    damage_tiff: 3,
    damage_mask_pixels: 2,
    damage_folder: 2,
    damage_frame_number: 1,
    damage_judgement: 1,
}
"""What is damaged, and how often."""


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """One to four bytes changed, taken out or put in, a piece repeated, or the end cut off."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(damaged) + 1)
        kind = rng.randrange(6)
        if kind == 0 and place < len(damaged):
            damaged[place] = rng.randrange(256)
        elif kind == 1 and place < len(damaged):
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del damaged[place : place + rng.randint(1, 8)]
        elif kind == 3:
            damaged[place:place] = bytes(
                rng.choice(b'0123456789-+.eE"{}[],:= \n\0\xff') for _ in range(rng.randint(1, 9))
            )
        elif kind == 4:
            piece = damaged[place : place + rng.randint(1, 40)]
            damaged[place:place] = piece * rng.choice((1, 2, 200))
        elif rng.random() < 0.2:
            del damaged[place:]
    return bytes(damaged)


def damage_structure(rng: random.Random, value: Any) -> Any:
    """One node of a JSON document replaced by something hostile, taken out, or doubled."""
    if not isinstance(value, (dict, list)):
        return rng.choice(HOSTILE)
    damaged = copy.deepcopy(value)
    nodes: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            nodes.append((node, key))
            collect(node[key])

    collect(damaged)
    parent, key = rng.choice(nodes)
    kind = rng.randrange(4)
    if kind < 2:
        parent[key] = rng.choice(HOSTILE)
    elif kind == 2:
        del parent[key]
    elif isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    else:
        parent[rng.choice(("slug", "value", "pk", "frames", "x"))] = copy.deepcopy(parent[key])
    return damaged


def _damage_json(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    if rng.random() < 0.5:
        path.write_bytes(damage_bytes(rng, content))
    else:
        path.write_text(json.dumps(damage_structure(rng, json.loads(content))))


def outcome(phase: Phase) -> str:
    """ "scored" or "refused"; AssertionError and whatever else is raised are faults.

    The submission is read twice: as the platform hands it over, and as a folder of `predict`, which has more files.
    """
    local = phase.root / "local"
    local.mkdir(exist_ok=True)
    shutil.copytree(phase.output_dir, local / "case-a", symlinks=True, copy_function=_copy_or_pipe)
    found = {_outcome(phase, lambda: read_platform_predictions(phase.input_dir))}
    found.add(_outcome(phase, lambda: [read_local_prediction(local, "case-a")]))
    return "refused" if "refused" in found else "scored"


def _copy_or_pipe(source: str, target: str) -> str:
    if Path(source).is_fifo():
        os.mkfifo(target)
        return target
    return shutil.copy2(source, target, follow_symlinks=False)


def _outcome(phase: Phase, read: Callable[[], list[Any]]) -> str:
    sources = find_official(phase.truth_dir)
    sentence = ""
    with _opened_files() as opened:
        try:
            submissions = read()
            check_cases([submission.case for submission in submissions], sources)
            for submission in submissions:
                _check_result(evaluate_case(CaseTask(sources[submission.case], submission, None, False, None)))
        except AcouslicError as error:
            sentence = str(error)
    root = str(phase.root.resolve())
    outside = [name for name in opened if not name.startswith(root) and not name.endswith(_CODE)]
    assert not outside, f"opened {outside}"
    assert "\n" not in sentence, f"more than one line: {sentence!r}"
    assert len(sentence) < _LONGEST_SENTENCE, f"a sentence of {len(sentence)} characters"
    assert one_line(sentence).isprintable(), f"not printable: {sentence!r}"
    return "refused" if sentence else "scored"


def _check_result(result: CaseResult) -> None:
    assert all(map(math.isfinite, result.official.values())), result.official
    assert 0 <= result.score <= 1, result.score
    assert result.presence_probability is None or len(result.presence_probability) == len(result.frame_labels)


@contextmanager
def _opened_files() -> Iterator[list[str]]:
    """The names of the files that are opened inside the block. An audit hook cannot be taken off again."""
    global _opened, _watching
    if not _watching:
        sys.addaudithook(_note_opened)
        _watching = True
    _opened = names = []
    try:
        yield names
    finally:
        _opened = None


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, bytes)):
        _opened.append(os.fsdecode(arguments[0]))


def _too_long(_: int, __: FrameType | None) -> None:
    raise TimeoutError(f"took more than {LONGEST_S} s")


def fuzz(count: int, seed: int = SEED) -> tuple[Counter[str], list[str]]:
    """How many damaged submissions were scored and refused, and the faults, each with how to make it again."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    previous = signal.signal(signal.SIGALRM, _too_long)
    try:
        with tempfile.TemporaryDirectory() as folder:
            phase = Phase(Path(folder) / "phase")
            for number in range(count):
                rng = random.Random(f"{seed} {number}")
                damage = rng.choices(list(KINDS), list(KINDS.values()))[0]
                phase.write()
                damage(rng, phase)
                signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
                try:
                    counts[outcome(phase)] += 1
                except Exception as error:
                    faults.append(f"seed {seed}, number {number}, {damage.__name__}: {type(error).__name__}: {error}")
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, previous)
    return counts, faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Damage, read, count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=at_least(1), default=2600, help="submissions (default: %(default)s)")
    add_seed(parser, SEED)
    options = parser.parse_args(arguments)
    counts, faults = fuzz(options.count, options.seed)
    for fault in faults:
        print(one_line(fault))
    print(json.dumps({"submissions": options.count, "seed": options.seed, **counts, "faults": len(faults)}))
    return 1 if faults else 0


if __name__ == "__main__":
    exit_with(main)
