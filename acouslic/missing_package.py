"""The error for a Python package that is not installed: its name, and what installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from acouslic.errors import AcouslicError

_OURS = {"", "acouslic", "acouslic_cli", "algorithm", "evaluation", "training"}


@contextmanager
def missing_package_named(extra: str, packages: str) -> Iterator[None]:
    """Raises AcouslicError in place of the ModuleNotFoundError for a package that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        sentence = explain_missing(error, extra, packages)
        if sentence is None:
            raise
        raise AcouslicError(sentence) from None


def explain_missing(error: ModuleNotFoundError, extra: str, packages: str) -> str | None:
    """One sentence that names the package, pyproject's `extra` and the set of `requirements/set_up.sh` that bring it;
    None where a module of this project is missing, which is a bug."""
    missing = (error.name or "").partition(".")[0]
    if missing in _OURS:
        return None
    return (
        f"the Python package {missing} is not installed, which this needs: pip install "
        f"'acouslic-fetal-abdomen[{extra}]', or requirements/set_up.sh {packages} in the repository"
    )
