"""The raw release becomes the cache that training reads (`cache.py` says what lies in it), checked on the way.

    python -m training prepare --raw RELEASE --out CACHE [--image-size 224] [--jobs 2]

It first looks at everything that could stop it: the table, every header, every mask, the free space. Missing files,
other shapes, labels other than 0, 1 and 2, two labels in one frame and cases without an annotated frame (unless
`--allow-unannotated`) end it there, before the long part, and are all listed. Then the frames are resized, by the code
that inference uses. What a person should know but training can live with goes into `report.json` and to stdout: a
sweep with a circumference but no annotated frame or the reverse, circumferences that the masks do not have, labelled
padding. Black and repeated frames are counted.

A case appears in the cache when it is complete. A run that was ended starts again where it stopped; a case whose files
changed is made anew. Stacks are read in chunks: memory does not grow with their number or size.
"""

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from acouslic.errors import AcouslicError
from acouslic.geometry import SWEEPS_PER_CASE, sweep_ranges
from acouslic.release import Release, read_circumferences
from acouslic.stack import open_stack
from acouslic.workers import map_over
from acouslic.write import write_json
from training.release.cache import BLACK, INDEX_FILE, REPEATED, Cache, CacheIndex, index_to_json, read_index
from training.release.prepare_case import CaseTask, PrepareConfig, check_masks, disk_errors, prepare_frames

_SPARE_BYTES = 200 << 20
_Result = TypeVar("_Result")


def prepare(config: PrepareConfig) -> Cache:
    """Make or complete the cache and return it.

    Raises AcouslicError as the module says; what is complete by then stays.
    """
    release = Release(config.raw)
    rows = read_circumferences(release.circumferences_path)
    if not rows:
        raise AcouslicError(f"{release.circumferences_path} lists no case")
    _stop_at(release.missing_files(rows))
    index = CacheIndex(config.image_size, config.antialias, tuple(rows))
    _check_settings(config.out, index)
    tasks = [CaseTask(config, row) for row in rows.values()]
    waiting = [task for task in tasks if not task.is_done()]
    print(f"{len(tasks)} cases, {len(tasks) - len(waiting)} of them done already", flush=True)
    frame_count = _check_headers(waiting)
    _check_space(config, frame_count)
    if not (config.out / INDEX_FILE).exists():
        write_json(config.out / INDEX_FILE, index_to_json(index))
    with map_over(config.jobs if waiting else 1, _use_one_thread) as map_cases:
        problems = [problem for found in _show(map_cases(check_masks, waiting), waiting, "masks") for problem in found]
        _stop_at(problems)
        # Not before: a cache that is whole stays so where a further case is refused.
        write_json(config.out / INDEX_FILE, index_to_json(index))
        for _ in _show(map_cases(prepare_frames, waiting), waiting, "frames"):
            pass
    cache = Cache(config.out)
    report = summarise(cache)
    write_json(config.out / "report.json", report)
    _print_report(report)
    return cache


def summarise(cache: Cache) -> dict[str, Any]:
    """The content of `report.json`: counts over the whole cache, and the findings."""
    labels, padding = Counter[int](), Counter[int]()
    findings = []
    for case in cache.cases:
        labels.update(case.labels.tolist())
        padding.update(case.padding.tolist())
        findings += [{"uuid": case.uuid, "sweep": item.sweep, "text": item.text} for item in case.record.findings]
    return {
        "cases": len(cache.cases),
        "subjects": len({case.subject_id for case in cache.cases}),
        "frames": sum(labels.values()),
        "optimal_frames": labels[1],
        "suboptimal_frames": labels[2],
        "black_frames": padding[BLACK],
        "repeated_frames": padding[REPEATED],
        "findings": findings,
    }


def _print_report(report: dict[str, Any]) -> None:
    for finding in report["findings"]:
        where = f"sweep {finding['sweep']}: " if finding["sweep"] else ""
        print(f"finding: {finding['uuid']}: {where}{finding['text']}")
    counts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.items() if name != "findings")
    print(f"{counts}; {len(report['findings'])} findings, listed in report.json")


def _check_settings(folder: Path, wanted: CacheIndex) -> None:
    """A cache that exists, complete or not, must have been started with the same settings."""
    if not (folder / INDEX_FILE).exists():
        return
    found = read_index(folder)
    if (found.image_size, found.antialias) != (wanted.image_size, wanted.antialias):
        raise AcouslicError(
            f"{folder} was prepared with image_size {found.image_size} and antialias {found.antialias}, not "
            f"{wanted.image_size} and {wanted.antialias}; choose another --out"
        )


def _check_headers(tasks: list[CaseTask]) -> int:
    """Open every stack's header; returns the number of frames of all. Raises AcouslicError after listing problems."""
    problems, frame_count = [], 0
    for task in tasks:
        try:
            image, mask = (open_stack(task.sources[name]).header for name in ("image", "mask"))
        except AcouslicError as error:
            problems.append(str(error))
            continue
        shapes = [(header.frames, header.rows, header.columns) for header in (image, mask)]
        if shapes[0] != shapes[1]:
            problems.append(f"{mask.path} has shape {shapes[1]}, expected {shapes[0]} as {image.path}")
        if len(sweep_ranges(image.frames)) > SWEEPS_PER_CASE:
            problems.append(f"{image.path} has {image.frames} frames, more than {SWEEPS_PER_CASE} sweeps")
        frame_count += image.frames
    _stop_at(problems)
    return frame_count


def _check_space(config: PrepareConfig, frame_count: int) -> None:
    """Raises AcouslicError where the frames that are still to come cannot fit the disk."""
    with disk_errors(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(config.out).free
    # One frame in ten annotated is more than any sweep series has.
    needed_bytes = int(1.1 * frame_count * config.image_size**2)
    if frame_count and free_bytes < needed_bytes + _SPARE_BYTES:
        raise AcouslicError(
            f"{config.out}: the cache needs {needed_bytes / 1e9:.1f} GB, the disk has {free_bytes / 1e9:.1f} GB free"
        )


def _stop_at(problems: list[str]) -> None:
    """Raise AcouslicError with the first problem, after printing all where there are more."""
    if not problems:
        return
    if len(problems) == 1:
        raise AcouslicError(problems[0])
    for problem in problems:
        print(f"problem: {problem}")
    raise AcouslicError(f"{problems[0]} (the first of {len(problems)} problems, all listed above)")


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _show(results: Iterator[_Result], tasks: list[CaseTask], what: str) -> Iterator[_Result]:
    """The results, with a progress bar on stdout."""
    return iter(tqdm(results, total=len(tasks), desc=what, unit="case", file=sys.stdout, disable=not tasks))


def main(arguments: list[str]) -> int:
    """The command `python -m training prepare`."""
    parser = argparse.ArgumentParser(prog="acouslic train prepare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True, help="the release: images/, masks/, circumferences/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cache; 42 MB a case at 224")
    parser.add_argument(
        "--image-size", type=int, default=PrepareConfig.image_size, help="side of the tower's input (%(default)s)"
    )
    parser.add_argument(
        "--antialias", action="store_true", help="resize with antialiasing (the submitted run does not)"
    )
    parser.add_argument("--allow-unannotated", action="store_true", help="accept cases without an annotated frame")
    parser.add_argument("--jobs", type=int, default=PrepareConfig.jobs, help="processes (%(default)s)")
    options = parser.parse_args(arguments)
    if options.image_size < 1 or options.jobs < 1:
        parser.error("--image-size and --jobs must be at least 1")
    prepare(PrepareConfig(**vars(options)))
    return 0
