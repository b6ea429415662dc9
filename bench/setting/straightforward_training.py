"""Side A of `training_speed.py`: a member trained as one writes it with open_clip, peft, torchvision and Lightning.

What the published code does, in our own words: open_clip's tower with peft's adapters on `c_fc`, `c_proj` and
`out_proj`, a linear head, frames read, augmented and normalised one by one by a dataset, DataLoader's collation,
autocast by Lightning's trainer, torch's AdamW, metrics logged at every step.
"""

from collections.abc import Sequence
from typing import Any

import lightning
import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2 as transforms

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Frames(Dataset[tuple[Tensor, Tensor]]):
    """Frames uint8 (N, S, S) with their labels (N,), augmented and normalised one at a time."""

    def __init__(self, frames: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        self.frames = frames
        self.labels = labels
        self.change = transforms.Compose(
            [
                transforms.ToImage(),
                transforms.RGB(),
                transforms.ColorJitter(0.2, 0.2),
                transforms.RandomApply([transforms.RandomEqualize(1.0)], 0.5),
                transforms.RandomAffine(20, translate=(0.2, 0.2)),
                transforms.ToDtype(torch.float32, scale=True),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        label = torch.tensor([float(self.labels[index] > 0)])
        return self.change(self.frames[index]), label


class Classifier(lightning.LightningModule):
    """A peft tower and a linear head."""

    def __init__(self, vision: dict[str, Any], embed_dim: int, rank: int, targets: Sequence[str], rate: float) -> None:
        super().__init__()
        text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
        clip = open_clip.CLIP(embed_dim, vision, text)
        adapter = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.1, target_modules=list(targets), bias="none")
        self.encoder = get_peft_model(clip.visual, adapter)
        self.classifier = nn.Linear(embed_dim, 1)
        self.rate = rate

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Binary cross-entropy, logged."""
        images, labels = batch
        logits = self.classifier(self.encoder(images))
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As published."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.rate)


def loader(frames: NDArray[np.uint8], labels: NDArray[np.uint8], batch: int, workers: int) -> DataLoader[Any]:
    """Shuffled batches."""
    return DataLoader(Frames(frames, labels), batch_size=batch, shuffle=True, drop_last=True, num_workers=workers)
