"""`python -m training table`: rows of the paper's table from tiny networks, trial by trial."""

import csv
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from acouslic.errors import AcouslicError
from training.fit import parse_arguments, settings_of
from training.learn.out_of_fold import OutOfFold
from training.learn.run_folder import RunFolder
from training.network.baselines import ROWS, Row, build_baseline
from training.network.model import count_trained
from training.release.cache import Cache
from training.release.split import read_split
from training.table import (
    TableTask,
    main,
    markdown_table,
    measure_trial,
    read_results,
    refuse_other_trials,
    run_trial,
    write_results,
)

CNN = Row("tiny_cnn", "Tiny CNN", "test_resnet.r160_in1k", "whole")
VIT = Row("tiny_vit", "Tiny ViT", "test_vit.r160_in1k", "lora")


def build(row: Row, **more: Any) -> Any:
    """A baseline of random weights; the tiny ViT wants 160 pixels."""
    options = {"image_size": 160, "weights": None, "random_init": True, "antialias": False} | more
    return build_baseline(row, **options)


def test_every_row_of_the_paper_is_there() -> None:
    """Six networks that timm knows under these names, and FetalCLIP's two."""
    known = set(timm.list_models(pretrained=True))
    assert [row.title for row in ROWS if row.timm_name is None] == ["FetalCLIP_CLS", "FetalCLIP_SEG as classifier"]
    for row in ROWS:
        if row.timm_name is not None:
            assert timm.is_model(row.timm_name.split(".")[0])
            assert "." not in row.timm_name or row.timm_name in known, row.timm_name


def test_a_cnn_is_fine_tuned_whole_and_a_transformer_with_lora() -> None:
    """All of the one's parameters learn; of the other the factors on proj, fc1, fc2 and the new head."""
    network, preprocessing = build(CNN)
    assert count_trained(network) == sum(parameter.numel() for parameter in network.parameters())
    assert preprocessing.mean == (0.5, 0.5, 0.5)
    network, _ = build(VIT)
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or ".head." in name for name in learning)
    assert {part for part in ("proj", "fc1", "fc2") if any(f".{part}.lora_A" in name for name in learning)} == {
        "proj",
        "fc1",
        "fc2",
    }
    assert any(".head." in name for name in learning)
    output = network(torch.zeros(2, 3, 160, 160))
    output.presence.sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_local_weights_are_used(tmp_path: Path) -> None:
    """A file of the network's weights is loaded but for the head; another network's is refused by tensor name."""
    torch.manual_seed(3)
    pretrained = timm.create_model(CNN.timm_name, num_classes=1000)
    torch.save(pretrained.state_dict(), tmp_path / "cnn.pt")
    network, _ = build(CNN, weights=tmp_path / "cnn.pt", random_init=False)
    own = network.body.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in pretrained.state_dict().items() if "fc." not in name)
    with pytest.raises(AcouslicError, match="tensor"):
        build(VIT, weights=tmp_path / "cnn.pt", random_init=False)


def test_another_frame_size_is_refused() -> None:
    """A transformer takes one size only, and the message says which."""
    with pytest.raises(AcouslicError, match="160 pixels"):
        build(VIT, image_size=28)


@pytest.fixture
def task(tiny_training: Any, tmp_path: Path) -> TableTask:
    """A table of the tiny CNN, one epoch a trial."""
    words = tiny_training.fit_arguments(tmp_path, f"--split={tiny_training.paper_split}", "--faithful")
    settings = settings_of(parse_arguments([*words, "--optimiser.epochs=1"]))
    cache, split = Cache(tiny_training.cache), read_split(tiny_training.paper_split)
    return TableTask(CNN, cache, split, settings, tmp_path, None, random_init=True, command="python -m training table")


def test_trials_are_independent(task: TableTask, tmp_path: Path) -> None:
    """Trial 2 after trial 1 is trial 2 alone; trials differ; both protocols count what they should."""
    first, second = run_trial(task, 1), run_trial(task, 2)
    alone = run_trial(TableTask(**(vars(task) | {"out": tmp_path / "alone"})), 2)

    def weights(out: Path, seed: int) -> dict[str, torch.Tensor]:
        return torch.load(out / CNN.name / f"trial_{seed}" / "checkpoints" / "last.ckpt", weights_only=True)[
            "state_dict"
        ]

    after, by_itself, other = weights(tmp_path, 2), weights(tmp_path / "alone", 2), weights(tmp_path, 1)
    assert all(torch.equal(tensor, by_itself[name]) for name, tensor in after.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in after.items())
    assert [result.f1 for result in alone] == [result.f1 for result in second]
    annotated, everything = first
    assert (annotated.protocol, everything.protocol) == ("annotated_sweeps", "all_frames")
    assert everything.frames == 2 * 48
    assert annotated.positives == everything.positives > 0


def test_a_trial_from_other_weights_is_another_trial(task: TableTask, tmp_path: Path) -> None:
    """Its figures are not those of these weights: the folder of one that started at random, from a file, or from
    another content of that file is refused."""
    weights = tmp_path / "cnn.pt"
    torch.save(timm.create_model(CNN.timm_name, num_classes=1000).state_dict(), weights)
    from_file = replace(task, weights=weights, random_init=False, out=tmp_path / "from_file")
    run_trial(from_file, 1)
    before = (tmp_path / "from_file" / CNN.name / "trial_1" / "run.json").stat().st_mtime_ns
    run_trial(from_file, 1)
    assert (tmp_path / "from_file" / CNN.name / "trial_1" / "run.json").stat().st_mtime_ns == before
    for other in (replace(from_file, weights=None), replace(from_file, weights=None, random_init=True), from_file):
        if other is from_file:
            torch.save(timm.create_model(CNN.timm_name, num_classes=1000).state_dict(), weights)
        with pytest.raises(AcouslicError, match="other weights to start from"):
            run_trial(other, 1)


def test_weights_that_would_not_be_used_are_refused(tiny_training: Any, tmp_path: Path) -> None:
    """FetalCLIP's rows are trained on the tower."""
    words = tiny_training.fit_arguments(tmp_path, f"--split={tiny_training.paper_split}")
    for word in ("--weights=file", "--random_init=true"):
        with pytest.raises(AcouslicError, match="fetalclip_cls takes --tower"):
            main(["--row=fetalclip_cls", word, *words])


def test_settings_that_would_not_be_used_are_refused(tiny_training: Any, tmp_path: Path) -> None:
    """A network of timm has no tower, and LoRA of its own."""
    words = [f"--cache={tiny_training.cache}", f"--split={tiny_training.paper_split}", f"--out={tmp_path}"]
    with pytest.raises(AcouslicError, match=r"tower\.weights has no effect on vgg16, .*; give --weights"):
        main(["--row=vgg16", "--tower.weights=file", *words])
    with pytest.raises(AcouslicError, match=r"adapter\.rank has no effect on swin_l, a network of timm$"):
        main(["--row=swin_l", "--adapter.rank=4", *words])


def test_a_file_of_weights_that_is_not_there_is_one_sentence(tiny_training: Any, tmp_path: Path) -> None:
    """Named before anything is trained."""
    words = [f"--cache={tiny_training.cache}", f"--split={tiny_training.paper_split}", f"--out={tmp_path}"]
    with pytest.raises(AcouslicError, match=r"none\.pt is not a readable file of weights: No such file"):
        main(["--row=vgg16", f"--weights={tmp_path / 'none.pt'}", *words])


def test_a_file_names_no_other_row_than_the_command_line(tiny_training: Any, tmp_path: Path) -> None:
    """The row decides the defaults before a file is read: the segmentation would be trained as the classifier."""
    path = tmp_path / "x.yaml"
    path.write_text("row: fetalclip_seg\n")
    words = tiny_training.fit_arguments(tmp_path, f"--split={tiny_training.paper_split}", f"--config={path}")
    with pytest.raises(AcouslicError, match="give --row fetalclip_seg there"):
        main(words)


@dataclass(frozen=True)
class Frames:
    """What measuring needs of a table of frames."""

    label: np.ndarray
    in_annotated_sweep: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


def test_the_two_protocols_by_hand(tmp_path: Path) -> None:
    """Six frames, three of them in an annotated sweep; one hit, one miss there, one false alarm outside."""
    folder = RunFolder(tmp_path)
    folder.write_record({"trained_parameters": 1, "epochs": 1, "seconds": 1.0, "commit": "c"})
    table = Frames(np.array([1, 2, 0, 0, 0, 0], np.uint8), np.array([1, 1, 1, 0, 0, 0], bool))
    logit = np.array([2.0, -1.0, -2.0, 0.0, -3.0, -4.0], np.float32)
    black = np.zeros(6, bool)
    scored = OutOfFold(np.array(["a"]), np.array([6]), table.label, black, logit, logit[:0], logit[:0], logit[:0])
    annotated, everything = measure_trial(CNN, 1, folder, table, scored)
    assert (annotated.frames, annotated.precision, annotated.recall) == (3, 1.0, 0.5)
    assert (everything.frames, everything.precision, everything.recall) == (6, 0.5, 0.5)
    assert annotated.f1 == pytest.approx(2 / 3, abs=1e-6)
    assert everything.accuracy == pytest.approx(4 / 6, abs=1e-6)


def test_results_are_kept_by_trial(task: TableTask, tmp_path: Path) -> None:
    """A trial that is run again replaces its lines; the table gives mean and sample standard deviation."""
    results = run_trial(task, 1)
    write_results(tmp_path, results)
    write_results(tmp_path, results)
    with (tmp_path / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


@pytest.mark.parametrize("content", [b"row;seed\n", b"row,seed\n1,2\n", b"\xff\xfe", None])
def test_a_table_that_was_saved_otherwise_stops_before_any_training(
    content: bytes | None, task: TableTask, tmp_path: Path
) -> None:
    """As by a spreadsheet; what the command wrote itself is read."""
    results = run_trial(task, 1)
    write_results(tmp_path, results)
    path = tmp_path / "results.csv"
    if content is None:
        assert len(read_results(path)) == 2
        return
    path.write_bytes(content)
    with pytest.raises(AcouslicError, match="move it away"):
        read_results(path)
    with pytest.raises(AcouslicError, match="move it away"):
        write_results(tmp_path, results)
    assert path.read_bytes() == content


def test_trials_of_one_row_have_the_same_settings_and_split(task: TableTask, tiny_training: Any) -> None:
    """Their mean would be of nothing; another seed, another machine and another row are no reason."""
    run_trial(task, 1)
    refuse_other_trials(task)
    machine = replace(task.settings.machine, threads=3)
    refuse_other_trials(replace(task, settings=replace(task.settings, seed=7, machine=machine)))
    longer = replace(task.settings, optimiser=replace(task.settings.optimiser, epochs=2))
    with pytest.raises(AcouslicError, match="holds other settings"):
        refuse_other_trials(replace(task, settings=longer))
    with pytest.raises(AcouslicError, match="one table has one split"):
        refuse_other_trials(replace(task, split=read_split(tiny_training.subject_split)))


def test_rows_beside_each_other_lose_no_line(tmp_path: Path) -> None:
    """Two commands that end a trial at the same moments: each line of both is in the table."""
    script = """
import sys, time
from pathlib import Path
from training.table import PROTOCOLS, TrialResult, write_results
out, row = Path(sys.argv[1]), sys.argv[2]
(out / f"ready_{row}").touch()
while len(list(out.glob("ready_*"))) < 2:
    time.sleep(0.001)
for seed in range(40):
    write_results(out, [TrialResult(row, seed, name, 1, 1, 1.0, 1.0, 1.0, 1.0, 1, 1, 1.0, "c") for name in PROTOCOLS])
"""
    commands = [[sys.executable, "-c", script, str(tmp_path), row] for row in ("vgg16", "swin_l")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    told = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 2 * 2 * 40


def test_the_table_by_hand() -> None:
    """Two trials of 0.7 and 0.8: mean 0.75, standard deviation 0.0707."""
    line = {"row": "vgg16", "protocol": "all_frames", "accuracy": "1", "precision": "1", "recall": "1"}
    lines = [line | {"f1": value, "trained_parameters": "134000000"} for value in ("0.7", "0.8")]
    text = markdown_table(lines)
    assert "| VGG-16 | 1.0000 ± 0.0000 | 0.7500 ± 0.0707 | 1.0000 ± 0.0000 | 1.0000 ± 0.0000 | 134.0 M | 2 |" in text


def test_the_command_trains_the_papers_own_row(tiny_training: Any, tmp_path: Path) -> None:
    """FetalCLIP_CLS on a tiny tower, two trials: a line a trial and protocol, and the table."""
    words = tiny_training.fit_arguments(tmp_path, f"--split={tiny_training.paper_split}", "--optimiser.epochs=1")
    assert main(["--row=fetalclip_cls", "--trials=2", *words]) == 0
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["seed"], line["protocol"]) for line in lines] == [
        ("1", "annotated_sweeps"),
        ("1", "all_frames"),
        ("2", "annotated_sweeps"),
        ("2", "all_frames"),
    ]
    assert "| FetalCLIP_CLS |" in (tmp_path / "table.md").read_text()


def test_trials_on_two_processes_are_scored_by_the_first(tiny_training: Any, tmp_path: Path) -> None:
    """As on a machine with two GPUs: both train every trial, one scores and writes."""
    words = tiny_training.fit_arguments(tmp_path, f"--split={tiny_training.paper_split}", "--optimiser.epochs=1")
    words += ["--row=fetalclip_cls", "--trials=2", "--machine.devices=2", "--machine.strategy=ddp"]
    command = [sys.executable, "-m", "training", "table", *words]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr
    assert "is not a finished training run" not in ended.stderr
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 2 * 2


def test_a_split_without_test_cases_is_refused(tiny_training: Any, tmp_path: Path) -> None:
    """Folds have no test cases to measure on; there is a trial at least, and every trial's seed is one."""
    words = tiny_training.fit_arguments(tmp_path, f"--split={tiny_training.subject_split}")
    with pytest.raises(AcouslicError, match="--trials must be at least 1, not 0"):
        main(["--row=fetalclip_cls", "--trials=0", *words])
    with pytest.raises(AcouslicError, match="--first_seed must be between 0 and"):
        main(["--row=fetalclip_cls", "--first_seed=-1", *words])
    with pytest.raises(AcouslicError, match="the last trial's seed must be between 0 and"):
        main(["--row=fetalclip_cls", "--first_seed=4294967295", "--trials=2", *words])
    with pytest.raises(AcouslicError, match="no test cases"):
        main(["--row=fetalclip_cls", *words])
