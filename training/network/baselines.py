"""The rows of the paper's table: its own two models, and six networks from timm."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import peft
import timm
import torch
from torch import Tensor, nn

from acouslic.errors import AcouslicError
from algorithm.model.networks import PreprocessingConfig
from training.network.model import Network, NetworkOutput
from training.network.tower_source import read_weights

LORA_TARGETS = ("proj", "fc1", "fc2")
LORA_RANK, LORA_ALPHA, LORA_DROPOUT = 8, 16, 0.1


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    """On the command line and in the results."""
    title: str
    """In the Markdown table."""
    timm_name: str | None
    """None for FetalCLIP's own two."""
    kind: Literal["cls", "seg", "whole", "lora"]
    """The published classification or segmentation recipe on the tower; a timm network, whole or with LoRA."""


ROWS = (
    Row("densenet121", "DenseNet-121", "densenet121", "whole"),
    Row("efficientnet_b0", "EfficientNet-B0", "efficientnet_b0", "whole"),
    Row("vgg16", "VGG-16", "vgg16", "whole"),
    Row("swin_l", "Swin-L", "swin_large_patch4_window7_224.ms_in22k_ft_in1k", "lora"),
    Row("deit3_l", "DeiT3-L", "deit3_large_patch16_224.fb_in22k_ft_in1k", "lora"),
    Row("vit_l_laion", "ViT-L (LAION)", "vit_large_patch14_clip_224.laion2b_ft_in12k_in1k", "lora"),
    Row("fetalclip_cls", "FetalCLIP_CLS", None, "cls"),
    Row("fetalclip_seg", "FetalCLIP_SEG as classifier", None, "seg"),
)


class TimmNetwork(Network):
    """A timm network with one logit: presence."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor, mask_rows: Tensor | None = None) -> NetworkOutput:  # noqa: ARG002  # no masks
        """Presence logits (B,) of normalised images (B, 3, S, S)."""
        return NetworkOutput(self.body(images)[:, 0], None, None)


def build_baseline(
    row: Row, *, image_size: int, weights: Path | None, random_init: bool, antialias: bool
) -> tuple[TimmNetwork, PreprocessingConfig]:
    """A fresh network of a row and its input convention; torch's random state decides what is random in it.

    Pretrained weights come from timm's hub, or from the file `weights`; `random_init` is for tests. Raises
    AcouslicError where they cannot be had or do not fit.
    """
    if row.timm_name is None:
        raise AcouslicError(f"{row.name} is trained on the tower, not on a network of timm")
    from_hub = weights is None and not random_init
    try:
        body: Any = timm.create_model(row.timm_name, pretrained=from_hub, num_classes=1)
    except (OSError, RuntimeError) as error:
        raise AcouslicError(
            f"{row.timm_name} cannot be had from timm's hub ({str(error).splitlines()[0]}): give --weights FILE"
        ) from None
    expected = body.pretrained_cfg.get("input_size", (3, image_size, image_size))[-1]
    if row.kind == "lora" and expected != image_size:
        raise AcouslicError(f"{row.timm_name} takes frames of {expected} pixels, the cache holds {image_size}")
    if weights is not None:
        _load_body(body, weights)
    if row.kind == "lora":
        settings = peft.LoraConfig(
            r=LORA_RANK,
            lora_alpha=LORA_ALPHA,
            lora_dropout=LORA_DROPOUT,
            target_modules=list(LORA_TARGETS),
            modules_to_save=None,
            bias="none",
        )
        classifier = body.get_classifier()
        body = peft.get_peft_model(body, settings)
        for parameter in classifier.parameters():  # the new head learns whole
            parameter.requires_grad_(True)
    mean, std = (tuple(float(value) for value in _convention(body)[name]) for name in ("mean", "std"))
    preprocessing = PreprocessingConfig(mean=mean, std=std, antialias=antialias)  # type: ignore[arg-type]
    return TimmNetwork(body).train(), preprocessing


def _convention(body: Any) -> dict[str, tuple[float, ...]]:
    """timm's record of how the pretrained weights want their input."""
    plain: Any = body.get_base_model() if isinstance(body, peft.PeftModel) else body
    return plain.pretrained_cfg


def _load_body(body: Any, path: Path) -> None:
    """Load everything but the classifier, which the pretrained network has for other classes."""
    state = read_weights(path)
    own = body.state_dict()
    classifier = {f"{name}." for name, module in body.named_modules() if module is body.get_classifier()}

    def is_head(name: str) -> bool:
        return any(name.startswith(prefix) for prefix in classifier)

    wanted = {name: tensor for name, tensor in own.items() if not is_head(name)}
    for name, tensor in wanted.items():
        if name not in state:
            raise AcouslicError(f"{path}: tensor {name!r} is missing")
        if state[name].shape != tensor.shape:
            raise AcouslicError(
                f"{path}: tensor {name!r} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
            )
    extra = sorted(name for name in state if name not in own)
    if extra:
        raise AcouslicError(f"{path}: unknown tensor {extra[0]!r} ({len(extra)} in all)")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(state[name])
