"""The student as it is trained: inference's own network, each convolution followed by batch normalisation.

Afterwards the normalisation, which then is a factor and a shift a channel, is folded into the convolutions.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.flop_counter import FlopCounterMode

from algorithm.model.networks import StudentConfig
from algorithm.model.student import ResidualBlock, Student
from training.network.model import Network, NetworkOutput


class Normalised(nn.Module):
    """A convolution without bias and the batch normalisation of its output."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,  # type: ignore[arg-type]  # torch names it wider than it is
            stride=plain.stride,  # type: ignore[arg-type]
            padding=plain.padding,  # type: ignore[arg-type]
            bias=False,
        )
        nn.init.kaiming_normal_(self.convolution.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(plain.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that does the same in evaluation."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        weight, bias = fuse_conv_bn_weights(
            self.convolution.weight, None, mean, variance, self.norm.eps, self.norm.weight, self.norm.bias
        )
        assert bias is not None
        return weight.detach(), bias.detach()


class StudentNetwork(Network):
    """A student with fresh weights; torch's random state decides them."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.has_optimality = config.optimality
        self.student = Student(config)
        for module in list(self.student.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Conv2d):
                    setattr(module, name, Normalised(child))
        for module in self.student.modules():
            if isinstance(module, ResidualBlock):
                # Every block begins as the identity, so that depth costs nothing at first.
                assert isinstance(module.second, Normalised)
                nn.init.zeros_(module.second.norm.weight)

    def forward(self, images: Tensor, mask_rows: Tensor | None = None) -> NetworkOutput:  # noqa: ARG002  # no masks
        """Logits, as in `Network`; never a mask."""
        presence, optimality = self.student(images)
        return NetworkOutput(presence, optimality, None)

    @torch.no_grad()
    def folded_state(self) -> dict[str, Tensor]:
        """The state dict of `algorithm.model.student.Student` that says the same, on the CPU."""
        state = {
            name: tensor for name, tensor in self.student.state_dict().items() if name.startswith(("presence", "optim"))
        }
        for name, module in self.student.named_modules():
            if isinstance(module, Normalised):
                state[f"{name}.weight"], state[f"{name}.bias"] = module.folded()
        return {name: tensor.detach().float().cpu() for name, tensor in state.items()}


def student_flop(config: StudentConfig, image_size: int) -> int:
    """What one frame costs a student whose tower takes images of this side, two a multiply-add."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        Student(config)(torch.empty(1, 3, image_size, image_size))
    return counter.get_total_flops()
