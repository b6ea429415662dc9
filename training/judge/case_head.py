"""The head of a whole case: learned from what members say of cases that they did not learn from, and judged nested.

What a member says of its own training cases is too sure, so only the others teach. Each embedding is judged by itself,
and the mean over members is the case's: a head that has seen one member's embeddings of a case can judge all members'.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from algorithm.judgement.select_frame import Values, presence_logit, probability_of
from algorithm.model.heads import CaseHead
from algorithm.model.networks import CaseHeadConfig

_NETWORKS = 5
_STEPS = 500
_CASES_A_STEP = 8
_LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class HeadRecipe:
    """What decides how a head learns, and how large it is."""

    config: CaseHeadConfig = field(default_factory=CaseHeadConfig)
    weight_decay: float = 1.0
    dropout: float = 0.1
    """Share of the features that a step does not see."""


@dataclass(frozen=True)
class CaseExample:
    """What one member says of all frames of a case that it did not learn from."""

    uuid: str
    embedding: Tensor
    """(F, output_dim), float32."""
    logit: Tensor
    """(F,), calibrated, float32."""
    seen: Tensor
    """bool (F,): frames that are not black."""
    sweeps: Sequence[range]
    label: NDArray[np.uint8]
    """(F,): 0 nothing, 1 optimal, 2 suboptimal."""


def calibrated_logit(logit: NDArray[np.float32], temperature: float) -> Tensor:
    """A member's raw logits (F,) as inference gives them to the head, float32 (F,): divided by `temperature`, and
    within the bounds of `presence_logit`."""
    probability = probability_of(logit.astype(np.float64) / temperature)
    return torch.from_numpy(presence_logit(probability).astype(np.float32))


def fit_case_head(examples: Sequence[CaseExample], recipe: HeadRecipe, seed: int) -> CaseHead:
    """The head that these cases teach: principal components of the centred embeddings, and on them the mean of five
    small networks, each with its share of the hidden units and random numbers of its own.

    What one network says depends on its seed; the mean hardly does. Since only the last layer's outputs are averaged,
    the five together are one network with all hidden units. The same examples and seed give the same bits. A case of
    black frames teaches nothing.
    """
    config = recipe.config
    examples = [case for case in examples if case.seen.any()]
    head = CaseHead(config, examples[0].embedding.shape[1]).requires_grad_(False)
    head.projection.weight.copy_(_principal_components(examples, config.components))
    with torch.no_grad():
        features = [head.features(case.embedding, case.logit, case.seen, case.sweeps) for case in examples]
    networks = min(_NETWORKS, config.hidden)
    for k, units in enumerate(torch.arange(config.hidden).tensor_split(networks)):
        hidden, change = _fit_network(examples, features, len(units), recipe, seed * _NETWORKS + k)
        head.hidden.weight[units], head.hidden.bias[units] = hidden.weight, hidden.bias
        head.change.weight[:, units] = change.weight / networks
        head.change.bias.add_(change.bias / networks)
    return head.eval()


def _fit_network(
    examples: Sequence[CaseExample], features: Sequence[Tensor], units: int, recipe: HeadRecipe, seed: int
) -> tuple[nn.Linear, nn.Linear]:
    """One network on the features of each case, (F, features): 500 steps of AdamW on the cross-entropy of presence,
    each case with the same weight; it begins by changing nothing. Returns its two layers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden, output = nn.Linear(features[0].shape[1], units), nn.Linear(units, 1)
    nn.init.zeros_(output.weight)
    nn.init.zeros_(output.bias)
    targets = [torch.from_numpy(case.label > 0).float() for case in examples]
    optimiser = torch.optim.AdamW(
        [*hidden.parameters(), *output.parameters()], lr=_LEARNING_RATE, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=_STEPS)
    epochs = math.ceil(_STEPS / math.ceil(len(examples) / _CASES_A_STEP))
    shuffled = [torch.randperm(len(examples), generator=generator) for _ in range(epochs)]
    batches = [batch for order in shuffled for batch in order.split(_CASES_A_STEP)]
    for batch in batches[:_STEPS]:
        chosen = batch.tolist()
        shown = torch.cat([features[k] for k in chosen])
        kept = torch.rand(shown.shape, generator=generator) >= recipe.dropout
        change = output(F.gelu(hidden(shown * kept / (1 - recipe.dropout))))[:, 0]
        logit = torch.cat([examples[k].logit for k in chosen]) + change
        weight = torch.cat([torch.full_like(targets[k], 1 / len(targets[k])) for k in chosen])
        target = torch.cat([targets[k] for k in chosen])
        loss = F.binary_cross_entropy_with_logits(logit, target, weight, reduction="sum") / len(chosen)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return hidden.requires_grad_(False), output.requires_grad_(False)


def review(head: CaseHead, examples: Sequence[CaseExample]) -> dict[str, Values]:
    """Presence (F,) in 0..1 of each case, by uuid, as the head sees it: the mean of the members that were asked.

    A black frame has 0, as in inference.
    """
    found: dict[str, list[Values]] = {}
    with torch.inference_mode():
        for case in examples:
            logit = head(case.embedding, case.logit, case.seen, case.sweeps)
            presence = np.where(case.seen.numpy(), probability_of(logit.numpy().astype(np.float64)), 0.0)
            found.setdefault(case.uuid, []).append(presence)
    return {uuid: np.mean(values, axis=0) for uuid, values in found.items()}


def review_nested(
    examples: Sequence[CaseExample],
    groups: Mapping[str, int],
    seed: int,
    recipe_for: Callable[[Sequence[CaseExample]], HeadRecipe] = lambda _: HeadRecipe(),
) -> dict[str, Values]:
    """`review` of every case by a head that has not learned from its group; `groups` is by uuid, two at least.
    `recipe_for` says how a head learns from some cases, and sees no others."""
    found: dict[str, Values] = {}
    for group in sorted({groups[case.uuid] for case in examples}):
        others = [case for case in examples if groups[case.uuid] != group]
        head = fit_case_head(others, recipe_for(others), seed)
        found |= review(head, [case for case in examples if groups[case.uuid] == group])
    return found


def _principal_components(examples: Sequence[CaseExample], count: int) -> Tensor:
    """(count, output_dim): the directions in which the frames of a case differ most, scaled to a variance of 1; rows of
    0 where there are fewer."""
    centred = torch.cat([(case.embedding - case.embedding[case.seen].mean(0))[case.seen].double() for case in examples])
    variance, direction = torch.linalg.eigh(centred.T @ centred / len(centred))
    variance, direction = variance.flip(0)[:count], direction.flip(1)[:, :count]
    # Either sign is right, and one has to be chosen.
    largest = direction.gather(0, direction.abs().argmax(0, keepdim=True))
    scale = torch.where(variance > 1e-12 * variance[0], variance.clamp_min(1e-30).rsqrt(), 0.0)
    components = torch.zeros(count, direction.shape[0], dtype=torch.float64)
    components[: len(variance)] = (direction * largest.sign() * scale).T
    return components.float()
