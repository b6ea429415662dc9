"""What all tests share: the policy for missing data, and the data itself."""

import os
from pathlib import Path

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
