"""Where a run's visual tower comes from: a file of weights, open_clip's hub, or, on purpose, random numbers."""

import hashlib
import pickle
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from acouslic.errors import AcouslicError
from acouslic.fov import field_of_view
from acouslic.strict_json import reason
from algorithm.frames.preprocess import square_offsets
from algorithm.model.networks import PreprocessingConfig, TowerConfig
from algorithm.model.tower import Tower, check_state, without_weights
from algorithm.model.typed_json import convert, read_object, read_typed_file
from algorithm.model.weight_files import refuse_damaged, refuse_lfs_pointer
from training.network.open_clip_weights import tower_config_from_open_clip, tower_state_from_open_clip
from training.network.transformers_weights import model_config_of_transformers, ratio_for
from training.recipe.settings import TowerSource

HUB_PREFIX = "hf-hub:"

FETALCLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 768,
    "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
    "text_cfg": {"context_length": 117, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12},
}
"""FetalCLIP's published open_clip configuration (arXiv 2502.14807)."""


# torch.load expects a whole file of its own: of any other its unpickler raises whatever it stumbles over.
_OF_DAMAGED_FILES = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


@dataclass(frozen=True)
class LoadedTower:
    """A tower's configuration, weights and input convention."""

    config: TowerConfig
    preprocessing: PreprocessingConfig
    state: dict[str, Tensor]
    """float32, names as in `algorithm.model.tower`."""
    sha256: str
    """Of all weights, in the order of their names: an export must find the same ones."""


def load_tower(source: TowerSource, frame_shape: tuple[int, int], antialias: bool) -> LoadedTower:
    """The tower that `source` names, always the same for the same source.

    `frame_shape` is (rows, columns) of the sweeps' frames: it decides which patches lie in the fan; `antialias` is how
    the cache was resized.
    Raises AcouslicError where weights are neither named nor random on purpose, cannot be read, hold anything but
    tensors, or do not fit the configuration.
    """
    model_config = read_model_config(source)
    config = tower_config_from_open_clip(model_config)
    if source.kept_patches == "fan":
        config = replace(config, kept_patches=fan_patches(config, *frame_shape))
    preprocessing = preprocessing_of(model_config, Path(source.config or "preprocess_cfg"), antialias)
    state = _random_state(config, source.random_seed) if source.random_init else _read_state(source, config)
    return LoadedTower(config, preprocessing, state, hash_state(state))


def read_model_config(source: TowerSource) -> dict[str, Any]:
    """open_clip's model configuration with, where it is known, `preprocess` (mean and std)."""
    if source.config is None and source.weights is not None and source.weights.startswith(HUB_PREFIX):
        path = _download(source.weights, "open_clip_config.json")
    elif source.config is None:
        return FETALCLIP_CONFIG
    else:
        path = Path(source.config)
    return read_open_clip_config(path)


def read_open_clip_config(path: Path) -> dict[str, Any]:
    """open_clip's model configuration out of a file: its own, the hub's form around it, or transformers' of a CLIP."""
    content = read_object(read_typed_file(path, missing="give an open_clip configuration"), path)
    if isinstance(content.get("model_cfg"), dict):  # the hub's form
        return content["model_cfg"] | {"preprocess": content.get("preprocess_cfg", {})}
    if content.get("model_type") in ("clip", "clip_vision_model"):
        return model_config_of_transformers(content, str(path))
    return content


def preprocessing_of(model_config: dict[str, Any], path: Path, antialias: bool) -> PreprocessingConfig:
    """Mean and deviation as an open_clip configuration states them, by channel in 0..1; `path` is for messages.

    Fields that are not there are CLIP's, as open_clip has it; the hub's form has others, which nothing here reads.
    """
    stated = convert(model_config.get("preprocess") or {}, PreprocessingConfig, path)
    return replace(stated, antialias=antialias)


def tower_of_record(record: dict[str, Any], state: dict[str, Tensor]) -> LoadedTower:
    """A tower from what `run.json` says of it and its weights."""
    config = dict(record["config"])
    if config["kept_patches"] is not None:
        config["kept_patches"] = tuple(config["kept_patches"])
    given = record["preprocessing"]
    preprocessing = PreprocessingConfig(tuple(given["mean"]), tuple(given["std"]), given["antialias"])
    return LoadedTower(TowerConfig(**config), preprocessing, state, hash_state(state))


def open_clip_config(config: TowerConfig, preprocessing: PreprocessingConfig) -> dict[str, Any]:
    """The open_clip configuration of a tower, as `load_tower` reads it; `kept_patches` has no place in it."""
    vision = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "width": config.width,
        "layers": config.layers,
        "head_width": config.width // config.heads,
        "mlp_ratio": ratio_for(config.mlp_width, config.width),
        "no_ln_pre": not config.pre_norm,
        "norm_kwargs": {"eps": config.norm_eps},
        "pool_type": config.pool,
        "final_ln_after_pool": config.norm_after_pool,
    }
    if config.layer_scale:
        vision["ls_init_value"] = 1.0
    return {
        "embed_dim": config.output_dim,
        "quick_gelu": config.activation == "quick_gelu",
        "vision_cfg": vision,
        "preprocess": {"mean": list(preprocessing.mean), "std": list(preprocessing.std)},
    }


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A training checkpoint, tensors and plain values only. Raises AcouslicError where it holds anything else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise AcouslicError(_refusal(path, error)) from None
    except _OF_DAMAGED_FILES as error:
        raise AcouslicError(f"{path} is not a readable checkpoint: {reason(error)}") from None
    if not isinstance(content, dict):
        raise AcouslicError(f"{path} is not a checkpoint")
    return content


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a torch file, which is never allowed to run code.

    Raises AcouslicError where it is neither, holds anything but tensors, or NaN or infinity in one of them.
    """
    refuse_lfs_pointer(path)
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise AcouslicError(f"{path} is missing: give a file of weights") from None
    except pickle.UnpicklingError as error:
        raise AcouslicError(_refusal(path, error)) from None
    except (*_OF_DAMAGED_FILES, SafetensorError) as error:
        raise AcouslicError(f"{path} is not a readable file of weights: {reason(error)}") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise AcouslicError(f"{path} is not a state dict: expected tensors by name")
    refuse_damaged(content, str(path))
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """What to tell about a file whose pickle asks for more than tensors and plain values; torch's own text advises to
    load it anyway."""
    with path.open("rb") as file:
        begins = file.read(2)
    if "invalid load key" in str(error) or not begins.startswith((b"PK", b"\x80")):  # neither an archive nor a pickle
        return f"{path} is not a file that torch.save has written"
    found = re.search(r"GLOBAL (\S+)", str(error))
    what = f"code or objects ({found[1]})" if found else "code or objects"
    return (
        f"{path} holds more than tensors and is not loaded: {what}; where you trust its source, save its state_dict "
        "alone with torch.save and give that file"
    )


def hash_state(state: dict[str, Tensor]) -> str:
    """sha256 of names, shapes and float32 values, independent of their order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().float().cpu().contiguous().numpy()
        digest.update(f"{name} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def rounded_state(state: dict[str, Tensor], dtype: torch.dtype, instead: str) -> dict[str, Tensor]:
    """Weights in another type. Raises AcouslicError, naming the tensor, where one is too large for it; `instead` says
    what to do."""
    rounded = {name: tensor.to(dtype) for name, tensor in state.items()}
    for name, tensor in rounded.items():
        if not tensor.isfinite().all() and state[name].isfinite().all():
            largest, kind = float(state[name].abs().max()), str(dtype).removeprefix("torch.")
            raise AcouslicError(f"the tower's {name!r} holds {largest:.3g}, too large for {kind}: {instead}")
    return rounded


def fan_patches(config: TowerConfig, rows: int, columns: int) -> tuple[int, ...]:
    """Row-major indices of the patches that hold any pixel of the field of view of frames of rows x columns."""
    side, top, left = square_offsets(rows, columns)
    square = np.zeros((side, side), np.float32)
    square[top : top + rows, left : left + columns] = field_of_view(rows, columns)
    image = F.interpolate(torch.from_numpy(square)[None, None], (config.image_size,) * 2, mode="area")
    inside = F.max_pool2d(image, config.patch_size)[0, 0] > 0
    return tuple(torch.nonzero(inside.flatten())[:, 0].tolist())


def _random_state(config: TowerConfig, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: tensor.detach() for name, tensor in Tower(config).state_dict().items()}


def _read_state(source: TowerSource, config: TowerConfig) -> dict[str, Tensor]:
    if source.weights is None:
        raise AcouslicError(
            "no weights for the tower: give --tower.weights FILE, or --tower.random_init true to start from nothing"
        )
    path = _download(source.weights) if source.weights.startswith(HUB_PREFIX) else Path(source.weights)
    state = tower_state_from_open_clip(read_weights(path), config, str(path))
    with without_weights():
        expected = Tower(config).state_dict()
    check_state(state, expected, str(path))
    return {name: tensor.float().clone() for name, tensor in state.items()}


def _download(model_id: str, filename: str | None = None) -> Path:
    """A file of a hub repository `hf-hub:owner/name[:FILE]`; the weights where no `filename` is asked for."""
    from open_clip.pretrained import download_pretrained_from_hf

    repository, _, weights_file = model_id.removeprefix(HUB_PREFIX).partition(":")
    try:
        return Path(download_pretrained_from_hf(repository, filename=filename or weights_file or None))
    except (FileNotFoundError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise AcouslicError(f"{model_id} cannot be fetched from the hub, give a local file: {reason}") from None
