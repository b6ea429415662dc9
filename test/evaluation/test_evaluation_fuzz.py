"""2,400 mutated submissions: each is refused with a sentence or scores; none crashes, hangs or reads outside."""

import copy
import json
import math
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acouslic.errors import AcouslicError
from evaluation.__main__ import one_line
from evaluation.case_evaluation import CaseTask, evaluate_case
from evaluation.inputs.ground_truth import find_official
from evaluation.inputs.predictions import check_cases, read_platform_predictions
from evaluation.metrics.case_result import CaseResult

SEED = 20260716
LIMIT_S = 10.0

NASTY: list[Any] = [
    None, True, -1, 0, 10**30, -(10**18), 3.5, 1e308, "", "..", "../..", "/etc/passwd", "a/b", "\0", "\n", "é",
    "\ud800", "x" * 2000, [], {}, [[]], {"slug": 5}, "Succeeded", "case-a", "case-a.mha", 50, 149, 150, "50",
]  # fmt: skip

_opened: list[str] | None = None


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, bytes)):
        _opened.append(arguments[0] if isinstance(arguments[0], str) else arguments[0].decode("latin-1"))


@pytest.fixture(scope="module", autouse=True)
def _watch_opened_files() -> None:
    """An audit hook cannot be taken off again; it notes something only while a mutation is scored."""
    sys.addaudithook(_note_opened)


@pytest.fixture
def phase(challenge: Any) -> Any:
    """One good case with scores, whose files the tests mutate; its `value` is null so that the file counts."""
    challenge.add_truth("case-a", {50: 1})
    challenge.add_job("case-a", 50)["outputs"][0]["value"] = None
    scores = {
        "schema_version": 1,
        "frames": challenge.frames,
        "thresholds": {"presence": 0.5, "optimality": 0.5},
        "presence_probability": [0.25] * challenge.frames,
        "optimality_probability": [0.5] * challenge.frames,
    }
    (challenge.output_of("case-a") / "frame-quality-scores.json").write_text(json.dumps(scores))
    challenge.save()
    return challenge


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    """A mutation that takes too long ends the test instead of hanging it."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"a mutation took more than {LIMIT_S} s")

    previous = signal.signal(signal.SIGALRM, too_long)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def outcome(phase: Any) -> str:
    """ "refused" or "scored"; fails for any other exception, result, or file opened outside of the phase."""
    global _opened
    sources = find_official(phase.ground_truth_dir)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    _opened = opened = []
    sentence = ""
    try:
        submissions = read_platform_predictions(phase.input_dir)
        check_cases([submission.case for submission in submissions], sources)
        for submission in submissions:
            check_result(evaluate_case(CaseTask(sources[submission.case], submission, None, False, None)))
    except AcouslicError as error:
        sentence = str(error)
    finally:
        _opened = None
        signal.setitimer(signal.ITIMER_REAL, 0)
    root = str(phase.input_dir.parent.resolve())
    assert opened
    assert all(name.startswith(root) for name in opened), opened
    assert "\n" not in sentence
    assert one_line(sentence).isprintable()
    return "refused" if sentence else "scored"


def check_result(result: CaseResult) -> None:
    """A valid result: finite numbers in their range."""
    assert all(map(math.isfinite, result.official.values()))
    assert 0 <= result.score <= 1
    assert result.presence_probability is None or len(result.presence_probability) == len(result.frame_labels)


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """One to four bytes changed, taken out or put in, a piece repeated, or the end cut off."""
    mutated = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(mutated) + 1)
        kind = rng.randrange(6)
        if kind == 0 and place < len(mutated):
            mutated[place] = rng.randrange(256)
        elif kind == 1 and place < len(mutated):
            mutated[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del mutated[place : place + rng.randint(1, 8)]
        elif kind == 3:
            mutated[place:place] = bytes(
                rng.choice(b'0123456789-+.eE"{}[],:= \n\0\xff') for _ in range(rng.randint(1, 9))
            )
        elif kind == 4:
            piece = mutated[place : place + rng.randint(1, 40)]
            mutated[place:place] = piece * rng.choice((1, 2, 200))
        elif rng.random() < 0.2:
            del mutated[place:]
    return bytes(mutated)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """One node replaced by something nasty, taken out, or doubled."""
    mutated = copy.deepcopy(value)
    nodes: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            nodes.append((node, key))
            collect(node[key])

    collect(mutated)
    parent, key = rng.choice(nodes)
    kind = rng.randrange(4)
    if kind < 2:
        parent[key] = rng.choice(NASTY)
    elif kind == 2:
        del parent[key]
    elif isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    else:
        parent[rng.choice(("slug", "value", "pk", "frames", "x"))] = copy.deepcopy(parent[key])
    return mutated


def json_mutator(content: bytes) -> Callable[[random.Random], bytes]:
    """Mutations of a JSON file: of its bytes or of its structure, half each."""
    value = json.loads(content)
    if not isinstance(value, (dict, list)):
        return lambda rng: mutate_bytes(rng, content) if rng.random() < 0.5 else json.dumps(rng.choice(NASTY)).encode()
    return lambda rng: (
        mutate_bytes(rng, content) if rng.random() < 0.5 else json.dumps(mutate_json(rng, value)).encode()
    )


def fuzz(phase: Any, path: Path, mutate: Callable[[random.Random], bytes], count: int) -> dict[str, int]:
    """Some mutations of a file of the phase, counted by outcome."""
    rng = random.Random(SEED)
    outcomes = {"scored": 0, "refused": 0}
    for _ in range(count):
        path.write_bytes(mutate(rng))
        outcomes[outcome(phase)] += 1
    assert outcomes["refused"] > count / 4, outcomes
    return outcomes


def test_mutated_predictions(phase: Any) -> None:
    """`predictions.json`, its bytes and its structure."""
    path = phase.input_dir / "predictions.json"
    assert outcome(phase) == "scored"
    assert fuzz(phase, path, json_mutator(path.read_bytes()), 900)["scored"] > 50


def test_mutated_score_files(phase: Any) -> None:
    """`frame-quality-scores.json`."""
    path = phase.output_of("case-a") / "frame-quality-scores.json"
    assert fuzz(phase, path, json_mutator(path.read_bytes()), 600)["scored"] > 10


def test_mutated_frame_numbers(phase: Any) -> None:
    """The file of the frame number."""
    path = phase.output_of("case-a") / "fetal-abdomen-frame-number.json"
    fuzz(phase, path, json_mutator(path.read_bytes()), 200)


def test_mutated_mask_headers(phase: Any) -> None:
    """The text header of the mask, its pixels kept."""
    path = phase.output_of("case-a") / "images/fetal-abdomen-segmentation/abc.mha"
    header, separator, pixels = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
    whole = header + separator
    assert fuzz(phase, path, lambda rng: mutate_bytes(rng, whole) + pixels, 500)["scored"] > 20


def test_mutated_mask_pixels(phase: Any) -> None:
    """The compressed pixels, the header kept."""
    path = phase.output_of("case-a") / "images/fetal-abdomen-segmentation/abc.mha"
    header, separator, pixels = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
    fuzz(phase, path, lambda rng: header + separator + mutate_bytes(rng, pixels), 200)
