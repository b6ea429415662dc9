"""What is said where a Python package is not installed: which, and what brings it."""

_OURS = {"", "acouslic", "acouslic_cli", "algorithm", "evaluation", "training"}


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
