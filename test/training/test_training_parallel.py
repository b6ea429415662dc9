"""Folds beside each other: as processes of one command, and as an array of Slurm jobs."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from acouslic.errors import AcouslicError
from training.learn.keeping import StoppedError
from training.learn.run_folder import RunFolder
from training.parallel import FoldProcesses

NOTES_PLACE = """
import os, sys, time
fold = [word for word in sys.argv if word.startswith("--fold=")][0].removeprefix("--fold=")
out = [word for word in sys.argv if word.startswith("--out=")][0].removeprefix("--out=")
print("GPU", os.environ.get("CUDA_VISIBLE_DEVICES"), "threads", os.environ.get("OMP_NUM_THREADS"), flush=True)
open(os.path.join(out, "began"), "w").write(str(time.time()))
time.sleep(float(sys.argv[1]))
open(os.path.join(out, "ended"), "w").write(str(time.time()))
if fold == sys.argv[2]:
    sys.exit("the disk is full")
"""


def folds(tmp_path: Path, seconds: float = 0.5, failing: str = "", **more: Any) -> FoldProcesses:
    """Four processes that take their time, two at once."""
    script = tmp_path / "fold.py"
    script.write_text(NOTES_PLACE)
    return FoldProcesses([sys.executable, str(script), str(seconds), failing], tmp_path / "work", 4, 2, **more)


def test_two_run_at_once_on_two_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never more than asked for, each on the GPU of its place, and each fold is announced."""
    folds(tmp_path, 2.0, gpus=["4", "6"]).run()
    logs = [(tmp_path / "work" / f"fold_{k}" / "log.txt").read_text().split() for k in range(1, 5)]
    assert {log[1] for log in logs} == {"4", "6"}
    times = [
        [float((tmp_path / "work" / f"fold_{k}" / name).read_text()) for name in ("began", "ended")]
        for k in range(1, 5)
    ]
    for began, _ in times:
        assert sum(first <= began < last for first, last in times) <= 2
    (began, ended), (other_began, other_ended) = times[:2]
    assert max(began, other_began) < min(ended, other_ended), "one after another: nothing is parallel"
    told = capsys.readouterr().out
    assert all(f"fold {k} of 4 on GPU" in told for k in range(1, 5))


@pytest.mark.parametrize(("cores", "at_once", "each"), [(9, 2, "4"), (1, 2, "1"), (9, 8, "2")])
def test_folds_on_a_cpu_share_its_cores(
    cores: int,
    at_once: int,
    each: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two at once on nine cores have four threads each; on one core each has one. More than there are folds take none
    of the cores."""
    monkeypatch.setattr("training.parallel.usable_cores", lambda: (cores, "as told"))
    running = folds(tmp_path, 0.1)
    running.at_once = at_once
    running.run()
    for fold in range(1, 5):
        assert f"threads {each}" in (tmp_path / "work" / f"fold_{fold}" / "log.txt").read_text()
    assert capsys.readouterr().out.count(f"on {each} CPU core") == 4


def test_a_fold_that_fails_is_named_once_the_others_are_done(tmp_path: Path) -> None:
    """With its own last words and its log."""
    with pytest.raises(AcouslicError, match=r"1 of 4 folds failed: fold 2: the disk is full \(.*fold_2.log\.txt\)"):
        folds(tmp_path, 0.1, "2").run()
    assert (tmp_path / "work" / "fold_4" / "ended").is_file()


def test_a_fold_that_was_killed_is_told_apart_from_what_it_said(tmp_path: Path) -> None:
    """By its signal; what an earlier process wrote to its log is not its word."""
    log = tmp_path / "fold_2" / "log.txt"
    log.parent.mkdir()
    log.write_text("the words of yesterday\n")
    running = FoldProcesses(["sh", "-c", "kill -9 $$"], tmp_path, 2, 2)
    with pytest.raises(
        AcouslicError, match=r"2 of 2 folds failed: .*2: it was ended by SIGKILL, .* it said nothing \("
    ):
        running.run()


def test_a_fold_that_cannot_be_started_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third finds a full disk, the fourth no process, and the log of the second is gone: all of them are told of
    once the others are done, and none trains on with nobody waiting for it."""
    running = folds(tmp_path, 1.0, "2")
    start = running._start

    def full(fold: int, place: int) -> Any:
        if fold > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"fold_{fold}")
        started = start(fold, place)
        if fold == 2:
            started.log.unlink()
        return started

    monkeypatch.setattr(running, "_start", full)
    with pytest.raises(AcouslicError, match=r"3 of 4 folds failed: .*2: its log cannot be read.*4: it could not be st"):
        running.run()
    assert (tmp_path / "work" / "fold_1" / "ended").is_file()


def test_a_signal_while_a_fold_is_started_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is there, but not yet known as one that runs."""
    running = folds(tmp_path, 60)
    start = running._start

    def signalled(fold: int, place: int) -> Any:
        started = start(fold, place)
        if fold == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return started

    monkeypatch.setattr(running, "_start", signalled)
    began = time.monotonic()
    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        running.run()
    assert time.monotonic() - began < 30
    assert not (tmp_path / "work" / "fold_3").exists()


def test_a_signal_reaches_all_and_none_is_left(tmp_path: Path) -> None:
    """What runs is ended, what waits is not begun, and the exit code is the signal's."""
    running = folds(tmp_path, 60)

    def stop_when_begun() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if all((tmp_path / "work" / f"fold_{k}" / "began").is_file() for k in (1, 2)):
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_begun).start()
    with pytest.raises(StoppedError, match="stopped by SIGTERM: each fold kept") as told:
        running.run()
    assert told.value.exit_code == 143
    assert not (tmp_path / "work" / "fold_3").exists()
    assert not list((tmp_path / "work").glob("fold_*/ended"))


def test_an_ignored_signal_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C where a script has put the command into the background: no fold hears it, so all are trained."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running = folds(tmp_path, 0.1)
    start = running._start

    def signalled(fold: int, place: int) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return start(fold, place)

    monkeypatch.setattr(running, "_start", signalled)
    running.run()
    assert len(list((tmp_path / "work").glob("fold_*/ended"))) == 4
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


FAKE_SBATCH = """#!/bin/bash
printf '%s\\n' "$@" > "$FAKE/sbatch.txt"
for word in "$@"; do
    case $word in --array=1-*) last=${word#--array=1-};; --wrap=*) job=${word#--wrap=};; esac
done
for task in $(seq "$last"); do
    SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$task bash -c "$job" > "$FAKE/job-$task.txt" 2>&1
    echo "$task $?" >> "$FAKE/codes.txt"
done
"""


def test_slurm_trains_a_fold_a_job(tiny_training: Any, repository: Path, tmp_path: Path) -> None:
    """The script prepares, submits an array of as many jobs as folds, and each job trains its fold; one that a signal
    ends asks to be started again. Called from another folder than the repository's, it finds what lies there. sbatch,
    srun and scontrol are stand-ins."""
    commands = {
        "sbatch": FAKE_SBATCH,
        # The second task is ended by a signal, as at its time limit.
        "srun": '#!/bin/bash\n[ "$SLURM_ARRAY_TASK_ID" = 2 ] && exit 143\nshift\nexec "$@"\n',
        "scontrol": '#!/bin/bash\necho "$@" >> "$FAKE/scontrol.txt"\n',
    }
    for name, text in commands.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    work = tmp_path / "work"
    settings = tiny_training.fit_arguments(work, "--optimiser.epochs=1", "--heads.decoder=false")[2:]
    shutil.copy(tiny_training.tower_config, tmp_path / "here.json")
    settings.append("--tower.config=here.json")
    words = [
        str(tiny_training.release),
        str(work),
        "--partition=gpu",
        "--",
        "--folds=2",
        "--antialias=true",
        "--parallel=1",
        *settings,
    ]
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "FAKE": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [str(repository / "training" / "slurm_ensemble.sh"), *words]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    submitted = (tmp_path / "sbatch.txt").read_text().splitlines()
    assert {"--array=1-2", "--requeue", "--signal=TERM@120", "--partition=gpu"} <= set(submitted)
    assert f"--chdir={tmp_path}" in submitted
    assert (tmp_path / "codes.txt").read_text().split() == ["1", "0", "2", "143"], (tmp_path / "job-1.txt").read_text()
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 77_2\n"
    assert RunFolder(work / "fold_1").read_record()["fold"] == 1
    assert not (work / "fold_2" / "run.json").exists()
