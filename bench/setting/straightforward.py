"""Side A of `case.py`: a case as one writes it with open_clip and peft, without a thought of speed.

The stack through SimpleITK; frames padded with PIL, resized with OpenCV (with torchvision where antialiasing is asked
for) and normalised one by one; every member a peft adapter on open_clip's tower, unmerged, switched by name; every
frame through every member, in float32 or under autocast, there with the one change that makes it fast on a CPU
(`put_sequence_first`); the best frame outlined by every member's decoder. It reads the algorithm's artifact, follows
the selection settings in its manifest and must come to the same answer. open_clip 3.3's attention does not call its
projections: where an adapter acts on them, attention is written anew with four linear layers, as anybody would have to.
Patches that an artifact leaves out are dropped where open_clip drops patches in training.

    python bench/setting/straightforward.py --sweep CASE.mha --model ARTIFACT --output DIR --precision float32

The last line is a JSON object: seconds by phase, probabilities, the chosen frame and its circumference, peak memory.
"""

import time

STARTED = time.monotonic()  # importing is a phase of its own

import argparse  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import SimpleITK as sitk  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torchvision.transforms import InterpolationMode  # noqa: E402
from torchvision.transforms import functional as transforms  # noqa: E402

from acouslic.ellipse import Ellipse, circumference_mm  # noqa: E402
from acouslic.errors import AcouslicError  # noqa: E402
from acouslic.fov import field_of_view  # noqa: E402
from acouslic.geometry import sweep_ranges  # noqa: E402
from algorithm.frames.preprocess import mask_to_frame  # noqa: E402
from algorithm.judgement.select_frame import choose_candidates, judge_frames  # noqa: E402
from algorithm.model.decoder import Decoder  # noqa: E402
from algorithm.model.heads import Heads  # noqa: E402
from algorithm.model.manifest import Manifest, read_manifest  # noqa: E402
from algorithm.model.networks import TowerConfig  # noqa: E402
from algorithm.model.tower import Attention  # noqa: E402
from algorithm.process.timing import peak_rss_bytes, process_age_s  # noqa: E402
from algorithm.result.segment import clean_mask  # noqa: E402
from bench.setting.command import add_device, exit_with  # noqa: E402

BATCH_FRAMES = 8
SEEN_BY_OPEN_CLIP = {"c_fc", "c_proj"}
"""Layers whose adapters open_clip's own tower applies. Its attention would ignore any other."""


class KeptPatches(nn.Module):
    """Drops the tokens of patches that an artifact leaves out, where open_clip has its patch dropout."""

    def __init__(self, kept: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.tensor([0, *(patch + 1 for patch in kept)]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1 + all patches, width) to (batch, 1 + kept patches, width)."""
        return x[:, self.tokens]


class SplitAttention(Attention):
    """Four linear layers in place of `nn.MultiheadAttention`: what one has to write for adapters on attention."""

    def forward(self, q_x: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:  # type: ignore[override]
        """Self-attention of (batch, tokens, width), as open_clip's block calls it."""
        return super().forward(q_x), None


def check_comparable(folder: Path, manifest: Manifest) -> None:
    """Raises AcouslicError for an artifact whose members lack what this side computes."""
    for index, member in enumerate(manifest.members):
        if not (member.adapter and member.presence and member.optimality and member.decoder):
            raise AcouslicError(
                f"{folder}: member {index} lacks an adapter or a head; all are needed here, or --ours-only"
            )


def adapts_attention(folder: Path, manifest: Manifest) -> bool:
    """Whether a member adapts a layer that open_clip's own attention would read past its adapter."""
    for index in range(len(manifest.members)):
        targets = LoraConfig.from_pretrained(str(folder / "members" / str(index))).target_modules
        if isinstance(targets, str) or set(targets) - SEEN_BY_OPEN_CLIP:
            return True
    return False


def open_clip_state(state: dict[str, Tensor], config: TowerConfig) -> dict[str, Tensor]:
    """The artifact's tower in float32 under open_clip's names: queries, keys and values packed again."""
    packed = {name: tensor.float() for name, tensor in state.items()}
    for block in range(config.layers):
        attention = f"transformer.resblocks.{block}.attn."
        for kind in ("weight", "bias"):
            parts = [packed.pop(f"{attention}{letter}_proj.{kind}") for letter in "qkv"]
            packed[f"{attention}in_proj_{kind}"] = torch.cat(parts)
    return packed


def build_tower(config: TowerConfig, weights: Path, *, split_attention: bool = False) -> nn.Module:
    """open_clip's visual tower, with `split_attention` where adapters act on its attention.

    Its text tower is made as small as can be, which favours this side: users load all.
    """
    vision = {
        "image_size": config.image_size,
        "layers": config.layers,
        "width": config.width,
        "patch_size": config.patch_size,
        "head_width": config.width // config.heads,
        "mlp_ratio": config.mlp_width / config.width,
        "no_ln_pre": not config.pre_norm,
        "ls_init_value": 1.0 if config.layer_scale else None,
        "pool_type": config.pool,
        "final_ln_after_pool": config.norm_after_pool,
        "norm_kwargs": {"eps": config.norm_eps},
    }
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
    clip = open_clip.CLIP(config.output_dim, vision, text, quick_gelu=config.activation == "quick_gelu")
    state = load_file(weights)
    clip.visual.load_state_dict(open_clip_state(state, config), strict=True)
    if config.kept_patches is not None:
        clip.visual.patch_dropout = KeptPatches(config.kept_patches)
    for number, block in enumerate(clip.visual.transformer.resblocks if split_attention else ()):
        root = f"transformer.resblocks.{number}.attn."
        block.attn = SplitAttention(config.width, config.heads)
        own = {name.removeprefix(root): tensor.float() for name, tensor in state.items() if name.startswith(root)}
        block.attn.load_state_dict(own)
    return clip.visual


def put_sequence_first(tower: nn.Module) -> None:
    """Let attention take (tokens, batch, width), which computes the same.

    As open_clip builds it, attention takes the batch first, and torch swaps the two by a view. Under autocast on a CPU
    the product with that view then copies the weight of queries, keys and values once a token: six times as slow as
    float32, where with the sequence first it is three times as fast.
    """
    if isinstance(tower.transformer.resblocks[0].attn, SplitAttention):
        return  # plain products, which take either order at the same speed
    tower.transformer.batch_first = False
    for block in tower.transformer.resblocks:
        block.attn.batch_first = False


def load_model(folder: Path, manifest: Manifest, device: torch.device) -> tuple[PeftModel, list[Heads]]:
    """The tower with one named peft adapter a member, and the members' heads."""
    split = adapts_attention(folder, manifest)
    tower = build_tower(manifest.tower, folder / "tower.safetensors", split_attention=split)
    model, heads = None, []
    for index, member in enumerate(manifest.members):
        place, name = folder / "members" / str(index), f"member{index}"
        config = LoraConfig.from_pretrained(str(place))
        if model is None:
            model = get_peft_model(tower, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        set_peft_model_state_dict(model, load_file(place / "adapter_model.safetensors"), adapter_name=name)
        head = Heads(member, manifest.tower)
        head.load_state_dict(load_file(place / "heads.safetensors"))
        heads.append(head.float().eval().to(device))
    assert model is not None
    return model.eval().to(device), heads


def preprocess(frame: np.ndarray, manifest: Manifest) -> Tensor:
    """One frame (rows, columns) as a normalised image (3, S, S)."""
    image = Image.fromarray(frame).convert("RGB")
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    image = transforms.pad(image, [left, top, side - image.width - left, side - image.height - top])
    size = [manifest.tower.image_size] * 2
    if manifest.preprocessing.antialias:
        resized = transforms.resize(transforms.pil_to_tensor(image), size, InterpolationMode.BICUBIC, antialias=True)
    else:
        resized = transforms.to_tensor(cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_CUBIC))
    return transforms.normalize(
        transforms.convert_image_dtype(resized), manifest.preprocessing.mean, manifest.preprocessing.std
    )


def score(
    model: PeftModel,
    heads: list[Heads],
    images: Tensor,
    manifest: Manifest,
    autocast: contextlib.AbstractContextManager,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, float]]]:
    """Presence and optimality probability (members, frames); frames and seconds of each batch of each member."""
    presence, optimality = np.zeros((2, len(heads), len(images)))
    passes = []
    for start in range(0, len(images), BATCH_FRAMES):
        batch = images[start : start + BATCH_FRAMES]
        for index, (member, head) in enumerate(zip(manifest.members, heads, strict=True)):
            begun = time.monotonic()
            model.set_adapter(f"member{index}")
            with torch.no_grad(), autocast:
                embedding = model(batch)
                presence_logit, optimality_logit = head.presence(embedding), head.optimality(embedding)
            stop = start + len(batch)
            presence[index, start:stop] = torch.sigmoid(presence_logit.float() / member.presence_temperature)[
                :, 0
            ].cpu()
            optimality[index, start:stop] = torch.sigmoid(optimality_logit.float() / member.optimality_temperature)[
                :, 0
            ].cpu()
            passes.append((len(batch), time.monotonic() - begun))
    return presence, optimality, passes


def segment(model: PeftModel, heads: list[Heads], image: Tensor, manifest: Manifest) -> Tensor:
    """The members' mean mask probability (side, side) of one image (3, S, S)."""
    masks = []
    for index, (member, head) in enumerate(zip(manifest.members, heads, strict=True)):
        model.set_adapter(f"member{index}")
        with torch.no_grad():
            blocks = model.base_model.model.forward_intermediates(
                image[None],
                indices=[tap - 1 for tap in member.decoder.taps],
                output_fmt="NLC",
                output_extra_tokens=True,
                intermediates_only=True,
            )
            tokens = zip(blocks["image_intermediates_prefix"], blocks["image_intermediates"], strict=True)
            decoder: Decoder = head.decoder
            taps = [on_full_grid(torch.cat(parts, 1), manifest.tower) for parts in tokens]
            masks.append(decoder(image[None], taps).sigmoid()[0])
    return torch.stack(masks).mean(0)


def on_full_grid(tokens: Tensor, config: TowerConfig) -> Tensor:
    """Tokens (1, 1 + kept, width) with every patch in its place; those left out are zero."""
    if config.kept_patches is None:
        return tokens
    full = tokens.new_zeros(1, 1 + config.grid_size**2, tokens.shape[-1])
    full[:, [0, *(patch + 1 for patch in config.kept_patches)]] = tokens
    return full


@dataclass(frozen=True)
class Chosen:
    """The frame that a case is measured on."""

    first_candidate: int
    """Before any outline."""
    frame_index: int
    mask: np.ndarray
    """bool (rows, columns)."""
    ellipse: Ellipse | None


def choose_frame(
    model: PeftModel,
    heads: list[Heads],
    images: Tensor,
    manifest: Manifest,
    presence: np.ndarray,
    optimality: np.ndarray,
    shape: tuple[int, int],
) -> Chosen:
    """Of the candidates by the members' mean probabilities the first with an ellipse, else the first of all.

    Images (F, 3, S, S), probabilities (members, F); `shape` is that of a frame, rows and columns.
    """
    sweeps, selection = sweep_ranges(len(images)), manifest.selection
    quality = judge_frames(presence.mean(0), optimality.mean(0), sweeps, selection).quality
    fov = field_of_view(*shape)
    candidates = choose_candidates(quality, sweeps, selection.candidates)
    outlines = {}
    for index in candidates:
        probability = mask_to_frame(segment(model, heads, images[index], manifest)[None], *shape)[0]
        outlines[index] = clean_mask(probability.cpu().numpy(), fov, manifest.thresholds.mask, selection.mask_shape)
        if outlines[index][1] is not None:
            break
    else:
        index = candidates[0]
    return Chosen(int(candidates[0]), int(index), *outlines[index])


def write_result(folder: Path, stack_image: sitk.Image, chosen: Chosen) -> None:
    """A stack of masks, empty but for the chosen frame, on the grid of `stack_image`; and the frame's index."""
    stack = np.zeros_like(sitk.GetArrayViewFromImage(stack_image))
    stack[chosen.frame_index] = chosen.mask
    folder.mkdir(parents=True, exist_ok=True)
    written = sitk.GetImageFromArray(stack)
    written.CopyInformation(stack_image)
    sitk.WriteImage(written, str(folder / "output.mha"), useCompression=True)
    (folder / "frame.json").write_text(json.dumps(chosen.frame_index))


class Laps:
    """Seconds by phase, each from the end of the one before, the device's work waited for."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = {"import_s": process_age_s()}
        self._device = device
        self._ended = time.monotonic()

    def end(self, phase: str) -> None:
        """The phase is over."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        now = time.monotonic()
        self.seconds[phase], self._ended = now - self._ended, now


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one case and print what `case.py` needs."""
    args = _parser().parse_args(arguments)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # On a GPU torch lets convolutions, here the patches', round float32 to 10 bits: too coarse to compare with.
    torch.backends.cudnn.allow_tf32 = False
    laps = Laps(device)
    manifest = read_manifest(args.model)
    check_comparable(args.model, manifest)
    model, heads = load_model(args.model, manifest, device)
    autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
    if args.precision != "float32":
        put_sequence_first(model.base_model.model)
        autocast = torch.autocast(device.type, getattr(torch, args.precision))
    laps.end("load_s")
    stack_image = sitk.ReadImage(str(args.sweep))
    frames = sitk.GetArrayFromImage(stack_image)
    laps.end("read_s")
    images = torch.stack([preprocess(frame, manifest) for frame in frames]).to(device)
    laps.end("preprocess_s")
    presence, optimality, passes = score(model, heads, images, manifest, autocast)
    laps.end("score_s")
    chosen = choose_frame(model, heads, images, manifest, presence, optimality, frames.shape[1:])
    laps.end("segment_s")
    write_result(args.output, stack_image, chosen)
    laps.end("write_s")
    ellipse, spacing_mm = chosen.ellipse, stack_image.GetSpacing()[1::-1]
    result = {
        **laps.seconds,
        "frames": len(frames),
        "precision": args.precision,
        "device": str(device),
        "first_candidate": chosen.first_candidate,
        "chosen_frame": chosen.frame_index,
        "circumference_mm": None if ellipse is None else circumference_mm(ellipse, spacing_mm),
        "passes": passes,
        "member_presence": presence.tolist(),
        "member_optimality": optimality.tolist(),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    print(json.dumps(result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sweep", type=Path, required=True, help="stack of frames")
    parser.add_argument("--model", type=Path, required=True, help="folder of the artifact")
    parser.add_argument("--output", type=Path, required=True, help="folder of the result")
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of autocast; float32 is none (default: %(default)s)",
    )
    add_device(parser)
    return parser


if __name__ == "__main__":
    exit_with(main)
