"""The container's job: sweeps in, chosen frame, mask and circumference out.

The ways in are here: `__main__` (the platform's exec mode), `serve` (its invoke mode), `predict` (people; with many
devices through `cohort`), `watch` (a folder that fills up), `amend` (corrections by hand) and `health`, with
`arguments` of the command line and the `case_list` they stand for, `api` (Python programs: `from algorithm import
Model`), and the `pipeline` that all of them share. The rooms follow the data, and each may use only those before it:

    process     the running program: cores, signals, messages, times
    model       what a trained model is: manifest, weights, tower, adapters, heads
    frames      a file becomes square frames on the device
    engine      square frames become each member's logits, embeddings and masks
    judgement   logits become probabilities and candidates
    result      candidates become one outline, its circumference and the files of the case
    page        results become pages to read
"""

from typing import TYPE_CHECKING

from acouslic.errors import AcouslicError

if TYPE_CHECKING:
    from algorithm.api import Model
    from algorithm.result.outputs import CaseResult

__all__ = ["AcouslicError", "CaseResult", "Model"]


def __getattr__(name: str) -> object:
    """`Model` and `CaseResult`, loaded when they are first asked for: `import algorithm` alone loads no torch."""
    if name == "Model":
        from algorithm.api import Model

        return Model
    if name == "CaseResult":
        from algorithm.result.outputs import CaseResult

        return CaseResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
