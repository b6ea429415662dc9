"""How fast a member is trained: this project's step against the one that one would write, on the same frames.

    python bench/training_speed.py [--recipe cls|ours|stand-in|both] [--cache CACHE] [--tower CONFIG.json]
                                   [--against TREE]

Side A is `setting/straightforward_training.py` (open_clip, peft, torchvision, Lightning), which trains the published
classifier and nothing else; side B is `training fit`. With `--against` a checkout of an older version is a side too. It
needs its packages (3243e6a: kornia 0.9). The sides take turns, each in a process of its own, and a step is timed from
end to end, its reading included; without a GPU by the processor's time, so that other work on the machine counts
little. It is computed in bfloat16 where the machine is fast in that, as `fit` does, and otherwise in float32.

`both` is the published classifier and our recipe. On a GPU the tower is FetalCLIP's with random weights, 32 frames a
step; without one it is of six blocks of width 256, 16 frames. `stand-in` is recipe (b) of training/RESULTS.md on a
tower like the stand-in's, ViT-S/14 with random weights, 8 frames. Without a cache, cases are drawn and prepared first
(a minute).

What is counted of one step: operators that run on the device (`kernels_per_step`), values that the host waits for
(`host_waits_per_step`), and the share of its time that is no pass of the tower (`not_tower_share`). `share_of_peak` is
the arithmetic of a step over the best rate of products measured in the same minute. The last line is a JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algorithm.process.cores import usable_cores
from bench.figures.matrix_peak import SHAPES, matrix_peak_flop_per_s
from bench.figures.table import table
from bench.setting.command import add_threads, at_least, check_there, exit_with
from bench.setting.machine import describe_machine, today, versions, warn_if_busy
from bench.setting.training_side import RECIPES, now_s
from training.learn.autocast import autocast_type
from training.network.tower_source import FETALCLIP_CONFIG

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL_TOWER = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 112, "patch_size": 14, "width": 256, "layers": 6, "head_width": 64},
}
STAND_IN_TOWER = {
    "embed_dim": 384,
    "vision_cfg": {
        "image_size": 224,
        "patch_size": 14,
        "width": 384,
        "layers": 12,
        "head_width": 64,
        "ls_init_value": 1.0,
        "no_ln_pre": True,
        "norm_kwargs": {"eps": 1e-6},
    },
}
_DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def draw_cache(folder: Path, image_size: int) -> Path:
    """A cache of a few drawn cases."""
    from training.phantom import generate
    from training.release import prepare

    size = ["--cases=6", "--rows=281", "--sweeps=3", "--frames-per-sweep=96", "--seed=11"]
    size.append(f"--jobs={min(6, usable_cores()[0])}")
    generate.main([f"--out={folder / 'release'}", *size])
    words = [f"--raw={folder / 'release'}", f"--out={folder / 'cache'}", f"--image-size={image_size}"]
    prepare.main([*words, "--allow-unannotated"])
    return folder / "cache"


def run_side(side: str, tree: Path, words: Sequence[str]) -> dict[str, Any]:
    """One turn of a side, on the packages of a tree."""
    script = REPOSITORY / "bench" / "setting" / "training_side.py"
    path = [str(tree), str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-P", str(script), f"--side={side}", *words]
    ended = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{side} in {tree} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def sides_of(recipe: str, older: Path | None) -> dict[str, tuple[str, str, Path]]:
    """Of each column its side, recipe and tree."""
    recipes = {"ours": "cls", "our recipe": "ours"} if recipe == "both" else {"ours": recipe}
    sides = {}
    if "cls" in recipes.values():
        sides["straightforward"] = ("straightforward", "cls", REPOSITORY)
    for name, trained in recipes.items():
        sides[name] = ("ours", trained, REPOSITORY)
        if older is not None:
            sides["older" if name == "ours" else f"older, {name}"] = ("ours", trained, older.absolute())
    return sides


def tower_and_batch(recipe: str, has_gpu: bool) -> tuple[dict[str, Any], int]:
    """The tower's configuration, and frames a step, where nothing else is asked for."""
    if recipe == "stand-in":
        return STAND_IN_TOWER, 8
    return (FETALCLIP_CONFIG, 32) if has_gpu else (SMALL_TOWER, 16)


def summarise(turns: Sequence[dict[str, Any]], peak_flop_per_s: float) -> dict[str, float]:
    """The figures of a side over its turns: medians, and the smallest share of a step beside its own tower."""
    seconds = float(np.median([second for turn in turns for second in turn["seconds"]]))
    outside = [1 - turn["tower_s"] / float(np.median(turn["seconds"])) for turn in turns]
    last = turns[-1]
    return {
        "seconds_per_step": seconds,
        "frames_per_s": last["batch"] / seconds,
        "not_tower_share": float(np.median(outside)),
        "share_of_peak": last["flop_per_step"] / seconds / peak_flop_per_s,
        "kernels_per_step": last["kernels_per_step"],
        "host_waits_per_step": last["host_waits_per_step"],
        "peak_bytes": max(turn["peak_bytes"] for turn in turns),
    }


def take_turns(options: argparse.Namespace, tower_config: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The turns of each column; the tower's configuration is for where no file of one is given."""
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        tower = options.tower
        if tower is None:
            tower = Path(folder) / "tower.json"
            tower.write_text(json.dumps(tower_config), encoding="utf-8")
        image_size = json.loads(tower.read_text(encoding="utf-8"))["vision_cfg"]["image_size"]
        cache = options.cache or draw_cache(Path(folder), image_size)
        words = [f"--cache={cache.absolute()}", f"--tower={tower.absolute()}"]
        words += [f"--{name}={getattr(options, name)}" for name in ("steps", "batch", "precision", "threads")]
        words += [f"--setting={setting}" for setting in options.settings]
        sides = sides_of(options.recipe, options.against)
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for turn in range(options.turns):
            for name, (side, recipe, tree) in sides.items():
                print(f"turn {turn + 1} of {options.turns}: {name}", file=sys.stderr, flush=True)
                turns[name].append(run_side(side, tree, [*words, f"--recipe={recipe}"]))
    return turns


def speedups(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of our step over the others that were measured, by the key of the JSON."""
    pairs = {
        "speedup": ("ours", "straightforward"),
        "speedup_over_older": ("ours", "older"),
        "speedup_over_older_our_recipe": ("our recipe", "older, our recipe"),
    }
    return {
        name: figures[other]["seconds_per_step"] / figures[ours]["seconds_per_step"]
        for name, (ours, other) in pairs.items()
        if other in figures
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    has_gpu = torch.cuda.is_available()
    options = _parser(has_gpu).parse_args(arguments)
    check_there(options.cache, options.tower, options.against)
    machine = describe_machine()
    tower_config, batch = tower_and_batch(options.recipe, has_gpu)
    options.batch = options.batch or batch
    turns = take_turns(options, tower_config)
    device = torch.device("cuda" if has_gpu else "cpu")
    torch.set_num_threads(options.threads)
    peak = matrix_peak_flop_per_s(device, _DTYPES[options.precision], SHAPES[device.type], now_s)
    figures = {name: summarise(found, peak) for name, found in turns.items()}
    warning = warn_if_busy(machine["load_before"], machine["cores"])
    print(f"{today()}, {machine['processor']}, {options.recipe}, batch {options.batch}, {options.precision}")
    if warning:
        print(warning)
    names = list(next(iter(figures.values())))
    print(table(["", *figures], [[name, *(f"{figures[side][name]:.4g}" for side in figures)] for name in names]))
    about = {"sides": figures, "machine": machine, "versions": versions()}
    print(json.dumps(figures["ours"] | about | speedups(figures)))


def _parser(has_gpu: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, help="cases that `acouslic train prepare` made (default: some are drawn)")
    parser.add_argument("--tower", type=Path, help="open_clip's configuration (default: one for the recipe)")
    parser.add_argument(
        "--recipe", choices=[*RECIPES, "both"], default="cls", help="what is trained (default: %(default)s)"
    )
    parser.add_argument("--against", type=Path, help="a checkout of an older version (default: none)")
    parser.add_argument("--turns", type=at_least(1), default=2, help="of each side (default: %(default)s)")
    parser.add_argument("--steps", type=at_least(1), default=8, help="timed ones of a turn (default: %(default)s)")
    parser.add_argument("--batch", type=at_least(1), help="frames a step (default: as many as the recipe has)")
    dtype, _ = autocast_type(torch.device("cuda" if has_gpu else "cpu"))
    half = [name for name, of_name in _DTYPES.items() if of_name == dtype]
    parser.add_argument(
        "--precision", choices=sorted(_DTYPES), default=half[0], help="of a step (default here: %(default)s)"
    )
    add_threads(parser)
    parser.add_argument("--settings", nargs="*", default=[], metavar="SECTION.SETTING=VALUE", help="of `fit`, for ours")
    return parser


if __name__ == "__main__":
    exit_with(main)
