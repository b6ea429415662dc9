"""Which frames an epoch shows, and how they reach the network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from acouslic.errors import AcouslicError
from training.fit import parse_arguments, settings_of
from training.frames.dataset import FrameDataset, FrameTable, PlannedBatch, soft_masks
from training.frames.loader import make_loader
from training.frames.sampling import HardNegatives, batches_of, plan_epoch, validation_rows
from training.learn.optimiser import parameter_groups
from training.learn.run_member import FoldCases, build_learner, load_tower_for
from training.recipe.settings import AugmentSettings, SamplingSettings
from training.release.cache import Cache


class DrawnCase:
    """A case of 3 sweeps of 10 frames: frames 3, 4 and 5 are annotated, frame 29 repeats frame 28."""

    uuid = "drawn"
    frame_count = 30
    sweeps = (range(10), range(10, 20), range(20, 30))
    sweep_ac_mm = (200.0, None, None)
    mask_frames = np.array([3, 4, 5], np.int32)

    def __init__(self) -> None:
        self.labels = np.zeros(30, np.uint8)
        self.labels[[3, 4, 5]] = [2, 1, 2]
        self.padding = np.zeros(30, np.uint8)
        self.padding[29] = 2
        self.sweep_of_frame = np.repeat([0, 1, 2], 10)
        self.frames = np.arange(30, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
        self.masks = np.zeros((3, 4, 4), np.uint8)
        self.masks[:, 1:3, 1:3] = np.array([2, 1, 2])[:, None, None]
        self.masks[0, 1:3, 1:3] = [[2, 0], [0, 0]]

    def mask(self, frame_index: int) -> np.ndarray:
        at = np.flatnonzero(self.mask_frames == frame_index)
        return self.masks[at[0]] if len(at) else np.zeros((4, 4), np.uint8)


@pytest.fixture
def table() -> FrameTable:
    """Two drawn cases, 60 rows."""
    return FrameTable([DrawnCase(), DrawnCase()])  # type: ignore[list-item]


def plan(table: FrameTable, epoch: int = 0, hard: HardNegatives | None = None, **settings: object) -> np.ndarray:
    """The rows of an epoch."""
    hard = hard or HardNegatives(len(table))
    return plan_epoch(table, SamplingSettings(**settings), hard, 7, epoch)  # type: ignore[arg-type]


def test_an_epoch_is_a_function_of_seed_and_epoch(table: FrameTable) -> None:
    """The same epoch twice is the same, another one is another."""
    settings = {"min_positive_pixels": 1, "negatives_per_positive": 3.0}
    np.testing.assert_array_equal(plan(table, 4, **settings), plan(table, 4, **settings))
    assert not np.array_equal(plan(table, 4, **settings), plan(table, 5, **settings))


def test_negatives_are_sampled_and_differ(table: FrameTable) -> None:
    """Six annotated frames and three times as many others, none twice, no repeated frame."""
    rows = plan(table, min_positive_pixels=1, negatives_per_positive=3.0)
    assert len(rows) == 24
    assert len(set(rows.tolist())) == 24
    assert (table.label[rows] > 0).sum() == 6
    assert not table.repeated[rows].any()


def test_all_frames_of_annotated_sweeps_as_published(table: FrameTable) -> None:
    """Without sampling, the annotated sweeps and nothing else: 10 frames of each case."""
    rows = plan(table, sweeps="annotated", negatives_per_positive=None, min_positive_pixels=1)
    assert sorted(rows.tolist()) == [*range(10), *range(30, 40)]


def test_annotated_frames_of_a_sweep_without_a_circumference_are_not_published(table: FrameTable) -> None:
    """The published code takes sweeps by their circumference, with all their frames or none, in training and in
    validation; our recipe takes all annotated frames."""
    table.label[[15, 16]] = 1
    published = {"sweeps": "annotated", "negatives_per_positive": None, "min_positive_pixels": 0}
    rows = plan(table, **published)
    assert sorted(rows.tolist()) == [*range(10), *range(30, 40)]
    validated, _ = validation_rows(table, 1, annotated_sweeps_only=True)
    assert sorted(rows.tolist()) == validated.tolist()
    assert {15, 16} <= set(plan(table, **published | {"sweeps": "all"}).tolist())
    table.label[[*range(10), *range(30, 40)]] = 0
    with pytest.raises(AcouslicError, match=r"and sampling\.sweeps"):
        plan(table, **published)


def test_presence_is_taught_as_annotated_or_with_doubt_at_the_ends(table: FrameTable) -> None:
    """Frames 3 to 5 of a sweep of ten; with two frames of doubt the ends lie between 2 and 3 and between 5 and 6, and a
    sweep without annotation is not in doubt."""
    assert table.presence_target(0.0).tolist() == (table.label > 0).tolist()
    target = table.presence_target(2.0)[:30]
    normal = {0.5: 0.5987, 1.5: 0.7734, 2.5: 0.8944}
    assert target[[3, 4, 5]].tolist() == pytest.approx([normal[0.5], normal[1.5], normal[0.5]], abs=1e-4)
    assert target[[2, 6, 0]].tolist() == pytest.approx([1 - normal[0.5], 1 - normal[0.5], 1 - normal[2.5]], abs=1e-4)
    assert not target[10:].any()


def test_tiny_masks_can_be_left_out(table: FrameTable) -> None:
    """A mask of one pixel is neither positive nor negative where more are asked for."""
    rows = plan(table, min_positive_pixels=2, negatives_per_positive=None)
    assert 3 not in rows
    assert {4, 5} <= set(rows.tolist())


def test_neighbours_of_annotated_frames_are_hard_at_first(table: FrameTable) -> None:
    """With only hard negatives, unseen ones come from the neighbourhood of annotated frames."""
    rows = plan(table, min_positive_pixels=1, negatives_per_positive=0.5, hard_share=1.0, near_frames=2)
    negatives = rows[table.label[rows] == 0]
    assert len(negatives) == 3
    assert (table.distance_to_annotated[negatives] <= 2).all()


def test_what_scored_high_comes_back(table: FrameTable) -> None:
    """Frames that the model took for positive are drawn before all others."""
    hard = HardNegatives(len(table))
    hard.note(torch.arange(60), torch.full((60,), 0.01))
    hard.note(torch.tensor([15, 16, 47]), torch.tensor([0.9, 0.8, 0.95]))
    assert np.array_equal(plan(table, hard=hard, min_positive_pixels=1), plan(table, min_positive_pixels=1)), (
        "what an epoch says changed its own plan"
    )
    hard.learn(hard.noted.clone())
    pools = [
        plan(table, epoch, hard, min_positive_pixels=1, negatives_per_positive=0.5, hard_share=0.5)
        for epoch in range(20)
    ]
    drawn = np.concatenate([rows[table.label[rows] == 0] for rows in pools])
    counts = np.bincount(drawn, minlength=60)
    assert counts[[15, 16, 47]].sum() > 20
    assert counts[[15, 16, 47]].min() > 3 * np.delete(counts, [15, 16, 47]).mean()


def drawn_negatives(table: FrameTable, last_seen: dict[int, float], others: float) -> set[int]:
    """Over twenty epochs, of three negatives each, all hard ones, when all frames were seen but where `others` is
    below 0."""
    hard = HardNegatives(len(table))
    hard.last_seen[:] = others
    hard.last_seen[list(last_seen)] = list(last_seen.values())
    hardest = {"negatives_per_positive": 0.5, "hard_share": 1.0, "near_frames": 2, "min_positive_pixels": 1}
    rows = np.concatenate([plan(table, epoch, hard, **hardest) for epoch in range(20)])
    return set(rows[table.label[rows] == 0].tolist())


def test_chance_does_not_overturn_what_was_said(table: FrameTable) -> None:
    """Six frames that scored 0.9 are the hard ones, and none of those that scored 0.7."""
    high = [12, 15, 18, 42, 45, 48]
    assert drawn_negatives(table, dict.fromkeys(high, 0.9), 0.7) == set(high)


def test_neighbours_that_were_never_seen_rank_as_if_they_had_scored_a_half(table: FrameTable) -> None:
    """They come before frames that scored 0.3 and after those that scored 0.7."""
    near = [1, 2, 6, 7, 31, 32, 36, 37]
    far = [12, 15, 18, 42, 45, 48]
    assert set(np.flatnonzero((table.distance_to_annotated <= 2) & (table.label == 0))) == set(near)
    assert drawn_negatives(table, dict.fromkeys(near, -1.0), 0.3) == set(near)
    assert drawn_negatives(table, dict.fromkeys(near, -1.0) | dict.fromkeys(far, 0.7), 0.3) == set(far)


def test_a_probability_of_exactly_nothing_counts() -> None:
    """A frame that was hard and of which the model then says 0 is no longer hard."""
    hard = HardNegatives(2)
    for said in (0.9, 0.0):
        hard.note(torch.tensor([1]), torch.tensor([said]))
        hard.learn(hard.noted.clone())
    assert hard.last_seen.tolist() == [-1.0, 0.0]


def test_every_batch_has_its_share_of_annotated_frames(table: FrameTable) -> None:
    """Annotated frames are spread over the epoch, not bunched by chance."""
    rows = plan(table, min_positive_pixels=1, negatives_per_positive=3.0)
    shares = [(table.label[batch] > 0).sum() for batch in batches_of(rows, 8, 0, 1)]
    assert all(1 <= share <= 3 for share in shares), shares


def test_processes_share_each_batch() -> None:
    """Two processes together see the batches of one, batch by batch."""
    rows = np.arange(20)
    whole = batches_of(rows, 8, 0, 1)
    halves = [batches_of(rows, 8, rank, 2) for rank in (0, 1)]
    assert [sorted(np.concatenate(parts).tolist()) for parts in zip(*halves, strict=True)] == [
        batch.tolist() for batch in whole
    ]
    with pytest.raises(AcouslicError, match="multiple of 3"):
        batches_of(rows, 8, 0, 3)


def test_validation_weighs_the_frames_it_skips(table: FrameTable) -> None:
    """Every annotated frame counts once, and the sampled others stand for all of them."""
    rows, weight = validation_rows(table, 3, annotated_sweeps_only=False)
    assert (table.label[rows] > 0).sum() == 6
    assert weight[table.label[rows] > 0].tolist() == [1.0] * 6
    assert weight.sum() == pytest.approx(60)


def test_validation_on_annotated_frames_alone_is_refused(table: FrameTable) -> None:
    """Every network would be right: no frame without a label is shown."""
    table.frame_index = table.frame_index + 1  # the first, which every stride shows, is in another sweep
    with pytest.raises(AcouslicError, match="validation_stride 100 shows no frame without a label"):
        validation_rows(table, 100, annotated_sweeps_only=False)


def test_no_annotated_frame_is_an_error(table: FrameTable) -> None:
    """There is nothing to learn from then, and the message says where to look."""
    with pytest.raises(AcouslicError, match="no annotated frame"):
        plan(table, min_positive_pixels=1000)


def test_a_batch_holds_the_frames_asked_for(table: FrameTable) -> None:
    """Frames, masks and labels in the order of the rows, also through the loader's batch interface."""
    planned = PlannedBatch(np.array([35, 2]), np.zeros(2, np.int64), (1,))
    through_loader = FrameDataset(table, AugmentSettings(recipe="none")).__getitems__(planned)
    for batch in (table.read(np.array([35, 2])), through_loader):
        assert batch.frames[:, 0, 0].tolist() == [5, 2]
        assert batch.label.tolist() == [2, 0]
        assert batch.masks.sum((1, 2)).tolist() == [4, 0]
        assert batch.rows.tolist() == [35, 2]


def test_frames_are_read_ahead_beside_a_gpu(table: FrameTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """By two processes, or by one less than there are cores; beside a CPU by none; or by as many as are asked for. What
    they read, and how it is to be changed, is the same."""
    dataset = FrameDataset(table, AugmentSettings(), seed=3)
    batches = [PlannedBatch(np.array([35, 2, at]), np.zeros(3, np.int64), (1, at)) for at in range(4)]
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for cores, expected in ((16, 2), (2, 1), (1, 0)):
        monkeypatch.setattr("training.frames.loader.usable_cores", lambda cores=cores: (cores, ""))
        assert make_loader(dataset, batches, 0, gpu, None).num_workers == expected
    here, ahead = (make_loader(dataset, batches, 1, cpu, processes) for processes in (None, 1))
    assert (here.num_workers, ahead.num_workers, len(ahead)) == (0, 1, 4)
    first, second = list(here), list(ahead)
    assert len(first) == len(second) == 3
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(*parts) for parts in zip(one, other, strict=True))


def test_soft_masks_keep_their_area() -> None:
    """Shrunk by area, a mask covers the same share of the image; enlarged, nearly so."""
    masks = torch.zeros(1, 8, 8, dtype=torch.uint8)
    masks[0, 1:6, 2:7] = 1
    assert float(soft_masks(masks, 4).mean()) == pytest.approx(25 / 64)
    assert float(soft_masks(masks, 16).mean()) == pytest.approx(25 / 64, rel=0.02)


def test_the_table_of_a_cache_reads_its_files(tiny_training: Any) -> None:
    """The rows of a real cache carry its labels, and the masks of annotated frames are not empty."""
    from training.frames.dataset import table_of
    from training.release.cache import Cache

    cache = Cache(tiny_training.cache)
    table = table_of(cache, [case.uuid for case in cache.cases])
    assert len(table) == 7 * 48
    annotated = np.flatnonzero(table.label > 0)
    assert len(annotated) > 5
    assert (table.mask_pixels[annotated] > 0).all()
    assert (table.mask_pixels > 0).sum() == len(annotated)
    masks = table.read(annotated).masks
    np.testing.assert_array_equal(masks.sum((1, 2)), table.mask_pixels[annotated])
    assert table.mask_share == pytest.approx(masks.float().mean().item())


@pytest.mark.parametrize(("recipe", "showings"), [("published", 3), ("sweep", 1)])
def test_the_published_recipe_shows_each_frame_three_times(recipe: str, showings: int, tiny_training: Any) -> None:
    """A plain showing and two copies of every frame of an annotated sweep; ours shows a frame once an epoch."""
    words = ["--faithful=cls", f"--augment.recipe={recipe}", "--optimiser.batch_size=1"]
    arguments = tiny_training.fit_arguments(Path("unused"), f"--split={tiny_training.paper_split}", *words)
    settings, cache = settings_of(parse_arguments(arguments)), Cache(tiny_training.cache)
    uuids = tuple(case.uuid for case in cache.cases)
    learner = build_learner(cache, FoldCases(uuids[1:], uuids[:1]), settings, load_tower_for(cache, settings))
    batches = list(learner.train_dataloader().batch_sampler)
    frames, counts = np.unique(np.concatenate([batch.rows for batch in batches]), return_counts=True)
    assert set(counts) == {showings}
    shown_once = {
        (int(row), int(copy)) for batch in batches for row, copy in zip(batch.rows, batch.copies, strict=True)
    }
    assert len(shown_once) == counts.sum(), "a frame's showings are numbered"
    table = learner.train_table
    shown = table.in_annotated_sweep & ((table.label > 0) | ~table.repeated)
    assert (table.label[~table.in_annotated_sweep] > 0).any(), "one case has an annotated frame without a circumference"
    assert set(frames) == set(np.flatnonzero(shown))


def test_a_decoder_can_stand_still(tiny_training: Any) -> None:
    """A learning rate of 0 is one, not a missing one."""
    words = ["--optimiser.decoder_learning_rate=0", "--optimiser.learning_rate=0.01"]
    arguments = tiny_training.fit_arguments(Path("unused"), f"--split={tiny_training.paper_split}", *words)
    settings, cache = settings_of(parse_arguments(arguments)), Cache(tiny_training.cache)
    uuids = tuple(case.uuid for case in cache.cases)
    learner = build_learner(cache, FoldCases(uuids[1:], uuids[:1]), settings, load_tower_for(cache, settings))
    assert {group["lr"] for group in parameter_groups(learner.network, settings)} == {0, 0.01}


def test_several_processes_agree_on_what_was_said_last() -> None:
    """A frame that became easy on the other process is easy on both, though it was hard here before."""
    here, there = HardNegatives(3), HardNegatives(3)
    for of_here, of_there in (({0: 0.9}, {1: 0.4}), ({1: 0.2}, {0: 0.1})):
        for hard, said in ((here, of_here), (there, of_there)):
            hard.note(torch.tensor(list(said)), torch.tensor(list(said.values())))
        shared = torch.maximum(here.noted, there.noted)  # as all_reduce does
        for hard in (here, there):
            hard.learn(shared)
    for hard in (here, there):
        assert hard.last_seen.tolist() == pytest.approx([0.1, 0.2, -1])
