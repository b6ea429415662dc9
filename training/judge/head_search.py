"""How large a case head should be and how it should learn, searched by Optuna on cases that it does not learn from.

Each trial is a recipe, judged nested by groups of subjects: the average precision of all frames, each as a head sees it
that has not learned from its group. The first trial is the default, so that what is found is never worse there. Members
are not asked again.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from sklearn.metrics import average_precision_score

from algorithm.model.networks import CaseHeadConfig
from training.judge.case_head import CaseExample, HeadRecipe, review_nested

_DEFAULT = HeadRecipe()
_COMPONENTS = (8, 16, 32, 64)
_HIDDEN = (20, 40, 80, 160)


def search_recipe(examples: Sequence[CaseExample], groups: Mapping[str, int], trials: int, seed: int) -> HeadRecipe:
    """The best of `trials` recipes, at least 1; of equal ones the earlier. `groups` is by uuid, two at least.

    The same examples, groups and seed find the same recipe.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial(
        {
            "components": _DEFAULT.config.components,
            "hidden": _DEFAULT.config.hidden,
            "neighbour_sigma_frames": _DEFAULT.config.neighbour_sigma_frames,
            "weight_decay": _DEFAULT.weight_decay,
            "dropout": _DEFAULT.dropout,
        }
    )
    study.optimize(lambda trial: judge_recipe(examples, groups, _propose(trial), seed), n_trials=trials)
    found = study.best_trial
    print(
        f"{trials} recipes on {len({case.uuid for case in examples})} cases: average precision "
        f"{study.trials[0].value:.4f} by default, {found.value:.4f} with {found.params}",
        flush=True,
    )
    return _recipe_of(found.params)


def judge_recipe(examples: Sequence[CaseExample], groups: Mapping[str, int], recipe: HeadRecipe, seed: int) -> float:
    """Average precision of all frames that are not black, each by a head that has not learned from its group; 0 where
    none is annotated."""
    reviewed = review_nested(examples, groups, seed, lambda _: recipe)
    cases = list({case.uuid: case for case in examples}.values())
    presence = np.concatenate([reviewed[case.uuid][case.seen.numpy()] for case in cases])
    annotated = np.concatenate([case.label[case.seen.numpy()] > 0 for case in cases])
    return float(average_precision_score(annotated, presence)) if annotated.any() else 0.0


def _propose(trial: optuna.Trial) -> HeadRecipe:
    """What the sampler wants to try next."""
    return _recipe_of(
        {
            "components": trial.suggest_categorical("components", _COMPONENTS),
            "hidden": trial.suggest_categorical("hidden", _HIDDEN),
            "neighbour_sigma_frames": trial.suggest_float("neighbour_sigma_frames", 1.0, 12.0, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 0.01, 10.0, log=True),
            "dropout": trial.suggest_float("dropout", 0.0, 0.5),
        }
    )


def _recipe_of(values: Mapping[str, float]) -> HeadRecipe:
    return HeadRecipe(
        CaseHeadConfig(
            components=int(values["components"]),
            hidden=int(values["hidden"]),
            neighbour_sigma_frames=values["neighbour_sigma_frames"],
        ),
        weight_decay=values["weight_decay"],
        dropout=values["dropout"],
    )
