"""What decides a student: its size, and how it learns from the ensemble."""

from dataclasses import dataclass, field

from training.recipe.settings import (
    AugmentSettings,
    MachineSettings,
    OptimiserSettings,
    SamplingSettings,
    TrainSettings,
)


@dataclass(frozen=True)
class StudentSize:
    """How large the student is.

    Args:
        width: channels of its first stage; each further stage has twice as many, on half the side.
        blocks: residual blocks of each stage.
    """

    width: int = 32
    blocks: tuple[int, ...] = (1, 2, 2, 2)


@dataclass(frozen=True)
class DistilSettings:
    """Everything that decides what a student learns.

    Where sampling speaks of annotated frames, it takes those that the ensemble gives a chance.

    Args:
        held_out: share of the subjects that it does not learn from: on their cases the gate's settings are chosen.
        most_refined: at most this share of a case's frames may be refined; for a student that would need more nothing
            is written.
        seed: seed of everything random.
    """

    student: StudentSize = field(default_factory=StudentSize)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    optimiser: OptimiserSettings = field(
        default_factory=lambda: OptimiserSettings(
            learning_rate=2e-3, epochs=16, batch_size=64, ema_decay=0.99, keep="last", patience_epochs=None
        )
    )
    machine: MachineSettings = field(default_factory=MachineSettings)
    held_out: float = 0.2
    most_refined: float = 0.2
    seed: int = 1

    def as_training(self) -> TrainSettings:
        """The settings of a run that they share with a member's."""
        return TrainSettings(
            sampling=self.sampling,
            augment=self.augment,
            optimiser=self.optimiser,
            machine=self.machine,
            seed=self.seed,
        )
