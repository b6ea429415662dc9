"""What all tests share: the policy for missing data, and the data itself."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip without a CUDA device. No GPU is promised to CI, so this skip is never a failure."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def skip_or_fail(reason: str) -> None:
    """Skip, saying why; where CI_REQUIRE_ALL=1 the same absence is a failure."""
    if os.environ.get("CI_REQUIRE_ALL") == "1":
        pytest.fail(f"CI_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of facts and real images that lies beside the repository, or where ACOUSLIC_SHARED points."""
    folder = Path(os.environ.get("ACOUSLIC_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        skip_or_fail(f"{folder} is not there: set ACOUSLIC_SHARED to the folder with data/golden, data/acouslic, tools")
    return folder


@pytest.fixture(scope="session")
def make_case_result() -> Callable[..., Any]:
    """Builds a CaseResult from what a test cares about; by default 840 unannotated frames and no chosen one."""
    from acouslic.geometry import FRAMES_PER_CASE
    from evaluation.case_result import CaseResult
    from evaluation.official import CASE_METRICS

    def build(case: str = "case", labels: np.ndarray | None = None, **fields: Any) -> CaseResult:
        official = dict.fromkeys(CASE_METRICS, 0.0) | {"nae_circumference": 1.0, "NearestAnnotatedFrame": -1.0}
        defaults: dict[str, Any] = {
            "subject_id": None,
            "frame_number": -1,
            "undefined_overlap": False,
            "both_empty": False,
            "reference_ac_mm": None,
            "predicted_ac_mm": None,
            "annotated_sweeps": (False,) * 6,
        }
        official |= fields.pop("official", {})
        frame_labels = np.zeros(FRAMES_PER_CASE, dtype=np.uint8) if labels is None else labels
        return CaseResult(case=case, frame_labels=frame_labels, official=official, **(defaults | fields))

    return build


@pytest.fixture(scope="session")
def chromium() -> str:
    """The headless browser that reports are opened in."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    skip_or_fail("no Chromium is installed, so no report can be opened")
    raise AssertionError("not reached")
