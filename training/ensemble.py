"""One command from the raw release to a trained ensemble: prepare, split by subject, fit every fold.

    python -m training ensemble --raw RELEASE --out WORK --tower.weights FILE [--folds 5] [--parallel N]
                                [--config X.yaml] ...

WORK/cache, WORK/split.json and WORK/fold_1, WORK/fold_2, ... are what the single commands would make; one that was
ended goes on. Settings are those of `fit`. `--parallel N` trains N folds beside each other, each on a GPU of its own
where there are GPUs; `--parallel 0` stops before the first, for `slurm_ensemble.sh`, which trains them as an array of
jobs. Then: acouslic train export WORK --out MODEL --pack model.tar.gz ...
"""

import shlex
from pathlib import Path

from acouslic.errors import AcouslicError
from acouslic.release import Release
from acouslic.write import write_text
from training.fit import fit_fold, make_parser, parse_settings, settings_of
from training.learn.run_folder import RunFolder, settings_to_yaml
from training.network.open_clip_weights import tower_config_from_open_clip
from training.network.tower_source import read_model_config
from training.parallel import FoldProcesses, fit_command, visible_gpus
from training.recipe.check_settings import check_seed
from training.release import prepare, split
from training.release.cache import Cache


def main(arguments: list[str]) -> int:
    """The command `python -m training ensemble`."""
    parser = make_parser("ensemble", __doc__, arguments)
    parser.add_argument("--raw", required=True, help="the release: images/, masks/, circumferences/")
    parser.add_argument("--out", required=True, help="folder for cache, split and runs")
    parser.add_argument("--folds", type=int, default=5, help="how many, one for each member")
    parser.add_argument("--split_seed", type=int, default=1, help="seed of the folds")
    parser.add_argument("--jobs", type=int, default=1, help="processes that prepare")
    parser.add_argument("--antialias", type=bool, default=False, help="resize with antialiasing")
    parser.add_argument("--allow_unannotated", action="store_true", help="accept cases without an annotated frame")
    parser.add_argument("--parallel", type=int, default=1, help="folds trained at the same time; 0 trains none")
    options = parse_settings(parser, "ensemble", arguments)
    if options.parallel < 0:
        raise AcouslicError(f"--parallel is how many folds to train at once, not {options.parallel}")
    if options.folds < 2:
        raise AcouslicError(f"--folds must be at least 2, not {options.folds}: a member is validated on one of them")
    check_seed("--split_seed", options.split_seed)
    settings, out, raw = settings_of(options), Path(options.out), Path(options.raw)
    split_path = out / "split.json"
    # Before anything is written: settings.yaml is what Slurm's jobs read, split.json what a model is judged by.
    for member in range(options.folds):
        RunFolder(out / f"fold_{member + 1}").refuse_other_settings(settings)
    if split_path.is_file() and any(out.glob("fold_*/cases.json")):
        _refuse_other_folds(split_path, options.folds, options.split_seed)
    image_size = tower_config_from_open_clip(read_model_config(settings.tower)).image_size
    words = [f"--raw={raw}", f"--out={out / 'cache'}", f"--image-size={image_size}", f"--jobs={options.jobs}"]
    words += ["--antialias"] * options.antialias + ["--allow-unannotated"] * options.allow_unannotated
    _done(prepare.main(words), "prepare")
    csv = Release(raw).circumferences_path
    if split_path.is_file() and any(out.glob("fold_*/cases.json")):
        again = split.split_cache(csv, out / "cache", folds=options.folds, seed=options.split_seed)
        if again.sha256() != split.read_split(split_path).sha256():
            raise AcouslicError(
                f"{csv} lists other cases than {split_path}, by which the runs beside it were trained: choose another "
                "--out, or give the release that they learned from"
            )
    words = [f"--csv={csv}", f"--cache={out / 'cache'}", f"--folds={options.folds}"]
    _done(split.main(["--protocol=subject", *words, f"--seed={options.split_seed}", f"--out={split_path}"]), "split")
    cache, folds = Cache(out / "cache"), split.read_split(split_path)
    write_text(out / "settings.yaml", settings_to_yaml(settings))
    if options.parallel == 0:
        print(f"{folds.members} folds to train with the settings of {out / 'settings.yaml'}", flush=True)
        return 0
    if options.parallel > 1:
        fit = fit_command(out / "cache", split_path, out / "settings.yaml")
        gpus = [] if settings.machine.accelerator == "cpu" else visible_gpus()
        FoldProcesses(fit, out, folds.members, options.parallel, gpus).run()
        return _say_done(folds.members, out)
    command = shlex.join(["python", "-m", "training", "ensemble", *arguments])
    for member in range(folds.members):
        print(f"fold {member + 1} of {folds.members}, in {out / f'fold_{member + 1}'}", flush=True)
        fit_fold(cache, folds, member, settings, out / f"fold_{member + 1}", command=command)
    return _say_done(folds.members, out)


def _refuse_other_folds(path: Path, folds: int, seed: int) -> None:
    there = split.read_split(path)
    if (there.members, there.seed) != (folds, seed):
        raise AcouslicError(
            f"{path} divides the cases of the runs beside it into {there.members} folds by seed {there.seed}: give "
            f"--folds {there.members} --split_seed {there.seed}, or choose another --out"
        )


def _say_done(members: int, out: Path) -> int:
    print(
        f"{members} members in {out}; next: acouslic train export {out} --out MODEL (--help says what it must be told)",
        flush=True,
    )
    return 0


def _done(exit_code: int, step: str) -> None:
    if exit_code:
        raise AcouslicError(f"{step} failed: see its message above")
