"""One side of `training_speed.py`: some steps of one recipe, timed and counted, in a process of its own.

    python bench/setting/training_side.py --side ours --cache CACHE --recipe ours --steps 12 ...

Runs in the tree whose packages Python finds first, so that an older version of this project can be a side as well. The
last line is a JSON object.
"""

import argparse
import collections
import contextlib
import importlib
import json
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

WARM_UP = 3
_NO_KERNEL = frozenset(
    {
        *("view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "detach", "alias"),
        *("as_strided", "split", "chunk", "unbind", "_unsafe_view", "empty", "empty_like", "empty_strided", "unfold"),
        *("new_empty", "_reshape_alias", "split_with_sizes", "lift_fresh", "resize_", "set_", "diagonal"),
    }
)
"""Operators that only look at memory."""
RECIPES = {
    "cls": ("--faithful=cls",),
    "ours": (),
    "stand-in": (
        *("--tower.kept_patches=fan", "--heads.filters=16", "--heads.decoder_grid=8", "--adapter.dropout=0"),
        *("--adapter.last_blocks=6", "--sampling.negatives_per_positive=3"),
    ),
}
"""Settings of `fit` by recipe: the published classifier, ours, and (b) of training/RESULTS.md."""
_WAITS = frozenset({"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"})
"""Operators whose result the host has to wait for; an index by a mask is a `nonzero` inside."""


def now_s() -> float:
    """The time once a GPU has done its work; without one the processor's time that this process took, which other work
    on the machine does not lengthen."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class CountedOperators(TorchDispatchMode):
    """Counts what a device would be given to do, and what the host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: collections.Counter[str] = collections.Counter()
        self.waits = 0
        self.waited_in: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in _NO_KERNEL:
            self.kernels[name] += 1
        waits = name in _WAITS
        if name in ("index", "index_put_", "index_put", "_index_put_impl_"):
            waits = any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1] or ())
        if waits:
            self.waits += 1
            self.waited_in.append(name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted_fetches() -> Iterator[list[str]]:
    """The names of Tensor's methods that fetch values, called inside: on a device each makes the host wait."""
    called: list[str] = []
    kept = {name: getattr(Tensor, name) for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__")}

    def noting(name: str) -> Any:
        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            called.append(name)
            return kept[name](self, *args, **kwargs)

        return method

    for name in kept:
        setattr(Tensor, name, noting(name))
    try:
        yield called
    finally:
        for name, method in kept.items():
            setattr(Tensor, name, method)


class Clock(Callback):
    """Times steps from end to end, reading included; counts in the last one, which is not timed."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seconds: list[float] = []
        self.kernels = self.waits = self.flop = 0
        self.batch_frames = 0
        self.waited_in: list[str] = []
        self._ended = 0.0
        self._counting = contextlib.ExitStack()
        self._counted: tuple[CountedOperators, FlopCounterMode, list[str]] | None = None

    def on_train_batch_start(self, _trainer: Any, _module: Any, batch: Any, index: int) -> None:
        """Begin to count."""
        self.batch_frames = len(batch[0])
        if index == WARM_UP + self.steps:
            fetched = self._counting.enter_context(counted_fetches())
            flop = self._counting.enter_context(FlopCounterMode(display=False))
            self._counted = self._counting.enter_context(CountedOperators()), flop, fetched

    def on_train_batch_end(self, trainer: Any, _module: Any, _outputs: Any, _batch: Any, index: int) -> None:
        """Note the time."""
        if self._counted is not None:
            self._counting.close()
            operators, flop, fetched = self._counted
            self.kernels, self.waits = operators.kernels.total(), operators.waits + len(fetched)
            self.flop = flop.get_total_flops()
            self.waited_in = sorted({*fetched, *operators.waited_in})
            trainer.should_stop = True
            return
        now = now_s()
        if index >= WARM_UP:
            self.seconds.append(now - self._ended)
        self._ended = now


def own_modules() -> tuple[Any, Any]:
    """`run_member` and `cache`, which an older version had without rooms."""
    for first, second in (("training.learn.", "training.release."), ("training.", "training.")):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(f"{first}run_member"), importlib.import_module(f"{second}cache")
    raise SystemExit("Python finds no training package of this project")


def build_ours(options: argparse.Namespace) -> tuple[Any, Any]:
    """This project's learner, and None: it brings its own batches."""
    from training.fit import parse_arguments, settings_of

    with contextlib.suppress(ImportError):  # a version from before it
        from training.learn.trainer import leave_fresh_memory

        leave_fresh_memory()
    with contextlib.suppress(ImportError):
        from algorithm.process.memory import keep_freed_memory

        keep_freed_memory()
    run_member, caches = own_modules()
    words = [f"--cache={options.cache}", "--split=none", "--out=none", "--tower.random_init=true"]
    words += [f"--tower.config={options.tower}", f"--optimiser.batch_size={options.batch}"]
    layers = json.loads(Path(options.tower).read_text(encoding="utf-8"))["vision_cfg"]["layers"]
    words += RECIPES[options.recipe]
    if options.recipe == "ours":  # a quarter of the tower, as it adapts 6 of FetalCLIP's 24 blocks
        words.append(f"--adapter.last_blocks={round(layers / 4)}")
    words += [f"--{setting}" for setting in options.setting]
    settings, cache = settings_of(parse_arguments(words)), caches.Cache(Path(options.cache))
    uuids = tuple(case.uuid for case in cache.cases)
    cases = run_member.FoldCases(uuids[1:], uuids[:1])
    return run_member.build_learner(cache, cases, settings, run_member.load_tower_for(cache, settings)), None


def build_straightforward(options: argparse.Namespace) -> tuple[Any, Any]:
    """The script that one writes, and its batches: frames of the same cache, held in memory."""
    from bench.setting.straightforward_training import Classifier, loader
    from training.release.cache import Cache

    content = json.loads(Path(options.tower).read_text(encoding="utf-8"))
    cases = Cache(Path(options.cache)).cases[1:]
    frames = np.concatenate([np.asarray(case.frames) for case in cases])[: 200 * options.batch]
    labels = np.concatenate([case.labels for case in cases])[: len(frames)]
    module = Classifier(content["vision_cfg"], content["embed_dim"], 8, ("c_fc", "c_proj", "out_proj"), 3e-4)
    # As many processes read as ours has beside a GPU.
    return module, loader(frames, labels, options.batch, 2 if torch.cuda.is_available() else 0)


def seconds_of_tower(module: Any, options: argparse.Namespace, precision: str) -> float:
    """A pass of the tower alone, there and back, over a batch: the arithmetic that a step cannot do without."""
    tower = module.network.tower if hasattr(module, "network") else module.encoder
    device = next(tower.parameters()).device
    size = json.loads(Path(options.tower).read_text(encoding="utf-8"))["vision_cfg"]["image_size"]
    images = torch.randn(options.batch, 3, size, size, device=device)
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
    tower.train()
    times = []
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), _held(tower, dtype):
        for _ in range(3 + options.steps // 2):
            start = now_s()
            output = tower(images)
            (output if isinstance(output, Tensor) else output.embedding).float().sum().backward()
            times.append(now_s() - start)
    return float(np.median(times[2:]))


def _held(tower: Any, dtype: torch.dtype) -> Any:
    """Frozen weights as training holds them, in versions that do."""
    try:
        from training.network.fast_layers import frozen_in
    except ImportError:
        return contextlib.nullcontext()
    return frozen_in(tower, dtype)


def main() -> None:
    """Train a few steps and print what they took."""
    print(json.dumps(measure(parse())))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", choices=("ours", "straightforward"), required=True, help="what is timed")
    parser.add_argument("--cache", required=True, help="cases that `acouslic train prepare` made")
    parser.add_argument("--tower", required=True, help="open_clip's configuration")
    parser.add_argument(
        "--recipe", choices=sorted(RECIPES), default="cls", help="what is trained (default: %(default)s)"
    )
    parser.add_argument("--setting", action="append", default=[], help="SECTION.SETTING=VALUE of ours; may be repeated")
    parser.add_argument("--batch", type=int, default=16, help="frames a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="timed ones (default: %(default)s)")
    parser.add_argument("--precision", default="32-true", help="of Lightning's trainer (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default: %(default)s)")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train `WARM_UP` and `steps` steps, and one that is counted."""
    torch.set_num_threads(options.threads)
    module, batches = (build_ours if options.side == "ours" else build_straightforward)(options)
    clock = Clock(options.steps)
    settings = module.settings if options.side == "ours" else None
    with tempfile.TemporaryDirectory(prefix="training-side-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and intervals
        trainer = lightning.Trainer(
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=1,
            precision=options.precision,
            max_epochs=1,
            limit_val_batches=0,
            logger=False,
            callbacks=[clock],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            gradient_clip_val=None if settings is None else settings.optimiser.clip_norm or None,
            deterministic=False if settings is None else "warn",
            default_root_dir=folder,
        )
        trainer.fit(module, batches)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "seconds": clock.seconds,
        "batch": clock.batch_frames,
        "kernels_per_step": clock.kernels,
        "host_waits_per_step": clock.waits,
        "waits": clock.waited_in,
        "flop_per_step": clock.flop,
        "tower_s": seconds_of_tower(module, options, options.precision),
        "peak_bytes": peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    main()
