"""Presence again, with the whole case in view, where an artifact has a head for that."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from algorithm.judgement.select_frame import Values, presence_logit, probability_of
from algorithm.model.artifact import Artifact
from algorithm.model.heads import CaseHead
from algorithm.model.tower import without_weights


def load_case_head(artifact: Artifact) -> CaseHead | None:
    """The artifact's case head on the CPU, in float32; None where it has none."""
    config = artifact.manifest.case_head
    if config is None or artifact.case_head is None:
        return None
    with without_weights():
        head = CaseHead(config, artifact.manifest.tower.output_dim)
    head.load_state_dict({name: tensor.float() for name, tensor in artifact.case_head.items()}, assign=True)
    return head.eval().requires_grad_(False)


def review_case(
    head: CaseHead,
    member_presence: NDArray[np.float32],
    member_embedding: NDArray[np.float32],
    sweeps: Sequence[range],
    blank: NDArray[np.bool_],
) -> Values:
    """Presence (F,) in 0..1 of a case that all members scored whole: the mean of what the head makes of each member.

    `member_presence` is (members, F) in 0..1, `member_embedding` (members, F, output_dim); `blank` bool (F,) are the
    black frames, which say nothing about the case and have 0.
    """
    seen = torch.from_numpy(~blank)
    found = []
    with torch.inference_mode():
        for presence, embedding in zip(member_presence, member_embedding, strict=True):
            logit = torch.from_numpy(presence_logit(presence.astype(np.float64)).astype(np.float32))
            changed = head(torch.from_numpy(embedding), logit, seen, sweeps)
            found.append(probability_of(changed.numpy().astype(np.float64)))
    return np.where(blank, 0.0, np.mean(found, axis=0))
