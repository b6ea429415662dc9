"""What scoring has computed of a frame that its outline needs too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutlineStart:
    """The tower's work on a batch of images, up to its last block: there scoring wants the class token alone."""

    before_last: Sequence[Tensor]
    """The residual stream of every member, (batch, tokens, width), float32."""
    taps: Sequence[Mapping[int, Tensor]]
    """What the decoder of every member may read of earlier blocks, by the block's number: (batch, 1 + grid x grid,
    width). What members share is one tensor."""

    def of_frame(self, index: int) -> "OutlineStart":
        """Of one image, as a batch of one that holds on to the whole batch."""
        one = slice(index, index + 1)
        taps = [{number: tap[one] for number, tap in of_member.items()} for of_member in self.taps]
        return OutlineStart([stream[one] for stream in self.before_last], taps)


def join(starts: Sequence[OutlineStart]) -> OutlineStart:
    """Batches, at least one, as one batch."""
    before_last = [torch.cat(streams) for streams in zip(*(start.before_last for start in starts), strict=True)]
    members = zip(*(start.taps for start in starts), strict=True)
    taps = [{number: torch.cat([of[number] for of in parts]) for number in parts[0]} for parts in members]
    return OutlineStart(before_last, taps)
