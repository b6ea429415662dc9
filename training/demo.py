"""Rebuilds `model/demo` from nothing: sweeps of our own making, a small tower learned on them, three members on it.

    python -m training demo [--out model/demo] [--work FOLDER]

The same modules as any other training, in the same order: generate, prepare, split, fit, export. First the tower
learns, in two stages and with all heads, on half-size sweeps, which are drawn four times as fast. The second stage
shows mostly what the first took for an abdomen. Then the tower is frozen, and three members with LoRA in its last
blocks learn on full-size sweeps of other cases, one member a fold of subjects. An ended command goes on where it
stopped when it is given the same `--work`. Nothing here has seen ultrasound: the demo shows that everything runs and is
never to be used on a patient.

Measured for the committed artifact on 50 generated cases of other seeds (`generate --cases 12 --seed 20002`, likewise
20260, 30003 and 40004, and `--cases 2 --seed 50005`, then `algorithm predict` and `evaluation local`): the chosen frame
is annotated in 12, 11, 11, 11 and 2 cases, 47 of 50; where it is, the circumference is off by 2.5 % on average and by
less than 5 % in 39. Score 0.96, 0.90, 0.91, 0.87 and 0.94; frame F1 0.70 to 0.85 on annotated sweeps, 0.68 to 0.83 on
all frames. How long to train was chosen on the first three seeds, so the last two are the fair ones. From nothing, on
one core of a machine that did other things too, it took 80 minutes. It was made before the warp of the augmentation was
kept out of half precision (commit c2b15c9) and before a decoder started at the share of its masks, so a rebuild differs
from it; what half precision costs it was measured afterwards. Its manifest has moved to the half-way reading since, by
`calibrate` on 16 cases of half-size frames (`generate --cases 16 --seed 60006 --rows 281`): on 16 others (`--seed
20002`, likewise) F1 over all frames rose from 0.797 to 0.846 and the chosen frame's WFSS from 0.950 to 0.975; both
chose an annotated frame in all 16. Since logits are smoothed (the same command on the same cases) they are 0.831 and
0.950. The figures above are from before. The same command again since the mask threshold suits the frames that could be
chosen: 0.50 instead of 0.55, and an interval that reaches 10.2 % either way. On the 16 others the circumference is off
by 3.0 % on average, before by 3.1 %, and the interval holds the true one in 15 cases, before in 10.
"""

import argparse
import signal
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file

from acouslic.errors import AcouslicError
from acouslic.release import Release
from acouslic.write import write_json
from algorithm.model.artifact import HEADS_FILE, refuse_target
from training.export.write_artifact import ExportSettings, export_runs
from training.fit import fit_fold
from training.learn.keeping import StoppedError
from training.learn.run_folder import RunFolder
from training.network.local_attention import starting_weights
from training.network.open_clip_weights import tower_config_from_open_clip
from training.phantom import generate
from training.recipe.settings import (
    AdapterSettings,
    AugmentSettings,
    HeadSettings,
    MachineSettings,
    OptimiserSettings,
    SamplingSettings,
    TowerSource,
    TrainSettings,
)
from training.release import prepare, split
from training.release.cache import Cache

TOWER_CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 96,
        "patch_size": 8,
        "width": 128,
        "layers": 4,
        "head_width": 32,
        "pool_type": "avg",  # a class token takes far longer to learn from nothing
    },
    # Grey frames: one mean and deviation, near those of the generated ones.
    "preprocess": {"mean": [0.15, 0.15, 0.15], "std": [0.2, 0.2, 0.2]},
}


@dataclass(frozen=True)
class SweepPlan:
    """The sweeps that one step learns from."""

    seed: int
    cases: int
    rows: int
    sweeps: int
    frames_per_sweep: int
    folds: int


@dataclass(frozen=True)
class DemoPlan:
    """How much is drawn and learned. The defaults make `model/demo`; tests use less."""

    pretraining: SweepPlan = SweepPlan(seed=7001, cases=1200, rows=281, sweeps=2, frames_per_sweep=24, folds=20)
    """Many cases of few, small frames: a tower that saw 48 whole cases knew the cases, not the abdomen."""
    members: SweepPlan = SweepPlan(seed=7002, cases=192, rows=562, sweeps=3, frames_per_sweep=48, folds=3)
    pretraining_epochs: tuple[int, int] = (7, 8)
    member_epochs: int = 10
    jobs: int = 2


_AUGMENT = AugmentSettings(attenuation=0.3, speckle=0.3, shadow=0.2, clahe=0.0)
"""The sweeps are drawn with attenuation, speckle and shadows in them already."""

FIRST_PRETRAINING = TrainSettings(
    tower=TowerSource(kept_patches="fan", train_all=True),
    adapter=AdapterSettings(rank=0),
    heads=HeadSettings(filters=8, decoder_grid=6),
    sampling=SamplingSettings(negatives_per_positive=2.0, hard_share=0.25, validation_stride=4),
    augment=_AUGMENT,
    optimiser=OptimiserSettings(
        learning_rate=1e-3,
        decoder_learning_rate=2e-3,
        warmup_share=0.05,
        batch_size=32,
        ema_decay=0.99,
        keep="last",
        patience_epochs=None,
    ),
)
"""The first training, of the whole tower: it learns what an abdomen looks like, mostly from outlines."""

SECOND_PRETRAINING = replace(
    FIRST_PRETRAINING,
    sampling=replace(FIRST_PRETRAINING.sampling, hard_share=0.75),
)
"""The second starts from there and shows mostly what the first took for an abdomen."""

MEMBER = replace(
    FIRST_PRETRAINING,
    tower=TowerSource(kept_patches="fan"),
    adapter=AdapterSettings(rank=8, alpha=16, dropout=0.05, last_blocks=3),
    sampling=replace(FIRST_PRETRAINING.sampling, hard_share=0.5),
    optimiser=replace(FIRST_PRETRAINING.optimiser, learning_rate=7e-4, warmup_share=0.1, ema_decay=0.98),
)
"""A member's: adapters in the last three blocks, and heads."""


def build_demo(plan: DemoPlan, work: Path, out: Path, machine: MachineSettings, command: str) -> None:
    """Every step into `work`, skipping what is there, and the artifact into `out`."""
    refuse_target(out)
    config_path, weights_path = work / "open_clip_config.json", work / "start.safetensors"
    write_json(config_path, TOWER_CONFIG)
    save_file(starting_weights(tower_config_from_open_clip(TOWER_CONFIG), seed=1), weights_path)
    pretraining = _prepare(work / "pretraining", plan.pretraining, plan.jobs)
    tower = TowerSource(weights=str(weights_path), config=str(config_path), kept_patches="fan")
    folds = split.read_split(work / "pretraining" / "split.json")
    heads_path: str | None = None
    for stage, (settings, epochs) in enumerate(
        zip((FIRST_PRETRAINING, SECOND_PRETRAINING), plan.pretraining_epochs, strict=True), start=1
    ):
        settings = _with(settings, replace(tower, train_all=True), heads_path, epochs, machine)
        tower_run = fit_fold(pretraining, folds, 0, settings, work / "pretraining" / f"run_{stage}", command=command)
        tower, heads_path = _tower_of(tower_run), str(tower_run.member / HEADS_FILE)
    members = _prepare(work / "members", plan.members, plan.jobs)
    settings = _with(MEMBER, tower, heads_path, plan.member_epochs, machine)
    folds = split.read_split(work / "members" / "split.json")
    runs = [
        fit_fold(members, folds, member, settings, work / "members" / f"run_{member + 1}", command=command)
        for member in range(folds.members)
    ]
    export_runs(runs, out, _EXPORT, command=command)


def _with(
    settings: TrainSettings, tower: TowerSource, heads: str | None, epochs: int, machine: MachineSettings
) -> TrainSettings:
    """Settings that start from a tower and heads."""
    return replace(
        settings,
        tower=tower,
        heads=replace(settings.heads, weights=heads),
        optimiser=replace(settings.optimiser, epochs=epochs),
        machine=machine,
    )


def _tower_of(run: RunFolder) -> TowerSource:
    """The tower that a run trained, as the start of the next."""
    weights, config = run.tower / "tower.safetensors", run.tower / "open_clip_config.json"
    return TowerSource(weights=str(weights), config=str(config), kept_patches="fan")


_EXPORT = ExportSettings(
    name="demo",
    tower="a small vision transformer learned from generated sweeps",
    tower_licence="Apache-2.0",
    training_data="sweeps drawn by this project (python -m training generate)",
    training_data_licence="Apache-2.0",
    notes="For trying the software out: no patient's image was ever part of it, and it knows none.",
)


def _prepare(folder: Path, plan: SweepPlan, jobs: int) -> Cache:
    """A release of generated sweeps, its cache and its split."""
    release, cache = folder / "release", folder / "cache"
    csv = Release(release).circumferences_path
    if not csv.is_file():
        size = [f"--rows={plan.rows}", f"--sweeps={plan.sweeps}", f"--frames-per-sweep={plan.frames_per_sweep}"]
        words = [f"--out={release}", f"--cases={plan.cases}", f"--seed={plan.seed}", f"--jobs={jobs}", *size]
        _step(generate.main(words))
    image_size = f"--image-size={TOWER_CONFIG['vision_cfg']['image_size']}"  # type: ignore[index]
    words = [f"--raw={release}", f"--out={cache}", image_size, "--antialias", "--allow-unannotated", f"--jobs={jobs}"]
    _step(prepare.main(words))
    words = ["--protocol=subject", f"--csv={csv}", f"--cache={cache}", f"--folds={plan.folds}"]
    _step(split.main([*words, f"--out={folder / 'split.json'}"]))
    return Cache(cache)


def _step(exit_code: int) -> None:
    if exit_code:
        raise AcouslicError("a step of the demo failed: see its message above")


def main(arguments: list[str]) -> int:
    """The command `python -m training demo`."""
    parser = argparse.ArgumentParser(prog="acouslic train demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("model/demo"), help="the artifact")
    parser.add_argument(
        "--work", type=Path, help="folder for sweeps and runs, about 6 GB; a temporary one if not given"
    )
    parser.add_argument("--jobs", type=int, default=DemoPlan.jobs, help="processes that draw and prepare sweeps")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {options.jobs}")
    plan = DemoPlan(jobs=options.jobs)
    command = "python -m training demo"
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
        build_demo(plan, options.work, options.out, MachineSettings(), command)
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix="demo-") as work:
            build_demo(plan, Path(work), options.out, MachineSettings(), command)
    except StoppedError as error:  # of a training, which knows nothing of the folder's end
        raise _stopped_without_work(error.exit_code - 128) from None
    except KeyboardInterrupt as error:
        raise _stopped_without_work(error.args[0] if error.args else signal.SIGINT) from None
    return 0


def _stopped_without_work(number: int) -> StoppedError:
    name = signal.Signals(number).name
    return StoppedError(
        number, f"stopped by {name}: without --work nothing is kept, and the same command begins anew; give --work"
    )
