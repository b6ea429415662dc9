"""Many cases on many devices by Ray: nothing lost, nothing twice, a poisonous case fails alone."""

import csv
import io
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from acouslic.errors import AcouslicError
from acouslic.sockets import FRAME_NUMBER_FILE, SweepInput
from algorithm.case_list import find_sweeps
from algorithm.cohort import CohortWorker, Dispatcher
from algorithm.predict import PredictSettings
from algorithm.process.devices import Node, Share, divide, visible_gpus
from algorithm.process.progress import Progress
from algorithm.result.record import Maker, write_record
from algorithm.result.source import source_of
from algorithm.result.table import ResultRow

pytest.importorskip("ray")


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "expected"),
    [
        ([Node(2, 0)], 2, None, Share(2, 1, 0)),
        ([Node(16, 0)], 3, None, Share(3, 5, 0)),
        ([Node(8, 0), Node(4, 0)], None, None, Share(2, 4, 0)),
        ([Node(8, 0), Node(4, 0)], 3, None, Share(3, 4, 0)),
        ([Node(0, 0), Node(8, 0), Node(8, 0)], None, None, Share(2, 8, 0)),
        ([Node(32, 4)], None, None, Share(4, 8, 1)),
        ([Node(32, 4), Node(8, 0)], None, None, Share(4, 8, 1)),
        ([Node(32, 4)], 2, "cpu", Share(2, 16, 0)),
    ],
)
def test_machines_are_divided(nodes, workers, device, expected):
    """A GPU each where there are any; else equal cores; a worker never spans two machines."""
    assert divide(nodes, workers, device) == expected


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("NoDevFiles", 0),
        ("2", 1),
        (" 0, 3", 2),
        ("0,-1,1", 1),
        ("0,4,1", 1),
        ("0,,1", 1),
        ("1,1", 0),
        ("GPU-8932f937,GPU-1b2c", 2),
    ],
)
def test_gpus_are_counted_as_cuda_shows_them(chosen, expected, tmp_path, monkeypatch):
    """Of four: what follows a name that no device has is not seen, and a device named twice hides all."""
    for number in range(4):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
    monkeypatch.setattr("algorithm.process.devices._DRIVER_FOLDER", tmp_path)
    if chosen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == expected


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "said"),
    [
        ([Node(2, 0)], 3, None, "there are 2 cores, and no two workers share one"),
        ([Node(32, 4)], 5, None, "there are 4 GPUs"),
        ([Node(2, 0)], 1, "cuda", "no GPU"),
    ],
)
def test_nothing_is_given_twice(nodes, workers, device, said):
    """More workers than cores or GPUs are refused instead of slowing each other down."""
    with pytest.raises(AcouslicError, match=said):
        divide(nodes, workers, device)


@pytest.fixture
def stacks(platform_case, speckle, tmp_path):
    """`stacks(names)`: a folder with a stack of each name, all different."""

    def write(names):
        folder = tmp_path / "stacks"
        folder.mkdir()
        for seed, name in enumerate(names):
            platform_case.write_sweep(speckle(12, seed=seed)).rename(folder / f"{name}.mha")
        return folder

    return write


def test_lists_name_stacks_and_cases(stacks, tmp_path):
    """CSV and Parquet alike: paths relative to the list, names of cases where the list has them."""
    import pyarrow
    import pyarrow.parquet

    stacks("ab")
    (tmp_path / "list.csv").write_text("path,case\nstacks/a.mha,first\nstacks/b.mha,\n")
    table = pyarrow.Table.from_pylist([{"path": "stacks/a.mha", "case": "first"}, {"path": "stacks/b.mha"}])
    pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
    for name in ("list.csv", "list.parquet"):
        found = find_sweeps([tmp_path / name])
        assert [(sweep.case, sweep.path) for sweep in found] == [
            ("first", tmp_path / "stacks/a.mha"),
            ("b", tmp_path / "stacks/b.mha"),
        ]


def test_a_case_may_be_called_by_a_number(stacks, tmp_path):
    """In Parquet, where a column may hold numbers, as in CSV, where they are text."""
    import pyarrow
    import pyarrow.parquet

    stacks("a")
    (tmp_path / "list.csv").write_text("path,case\nstacks/a.mha,12\n")
    table = pyarrow.Table.from_pylist([{"path": "stacks/a.mha", "case": 12}])
    pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
    for name in ("list.csv", "list.parquet"):
        assert [sweep.case for sweep in find_sweeps([tmp_path / name])] == ["12"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file\na.mha\n", "row 1 names no stack: expected a column `path`"),
        ("path\n", "lists no stack"),
        ("path\nnowhere.mha\n", "row 1 names .*nowhere.mha, which does not exist"),
        ("path,case\nstacks/a.mha,../b\n", "row 1 names the case '../b', which no folder can have"),
        ("path,case\nstacks/a.mha,b.mha\n", "row 1 names the case 'b.mha', expected it without a suffix: 'b'"),
    ],
)
def test_a_list_that_names_nothing_is_refused(text, said, stacks, tmp_path):
    """With the row, before anything is analysed."""
    stacks("a")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(AcouslicError, match=said):
        find_sweeps([tmp_path / "list.csv"])


def test_progress_says_rate_and_estimate():
    """In a log, where there is no bar."""
    with Progress(300) as progress:
        for _ in range(120):
            progress.end_case("done")
        assert progress.sentence(2400.0) == "120 of 300 cases, 3.0 a minute, about 1:00:00 more"


def test_an_earlier_result_at_another_age_is_not_taken_for_the_dead_workers(stacks, tmp_path, monkeypatch):
    """A case whose worker died is tried again unless its result is there: not the one of an earlier run, whose list
    gave another gestational age."""
    stack = stacks("a") / "a.mha"
    maker, case_dir = Maker("0", "m", "x", {}), tmp_path / "out" / "a"
    case_dir.mkdir(parents=True)
    (case_dir / FRAME_NUMBER_FILE).write_text("3")
    earlier = ResultRow("a", gestational_age="28w0d")
    write_record(case_dir, source_of(stack), maker, earlier)
    monkeypatch.setattr("algorithm.cohort.analyse_case", lambda *_: "analysed")
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.chdir(tmp_path)
    worker = CohortWorker(PredictSettings(tmp_path / "out", tmp_path), maker, 1, "token", tmp_path)
    worker._pipeline = object()
    assert worker.analyse(SweepInput(stack, "a", "28w0d"), None, again=True) == earlier
    assert worker.analyse(SweepInput(stack, "a", "30w0d"), None, again=True) == "analysed"


def test_relative_paths_are_those_of_the_drivers_folder(tiny_model, tmp_path, monkeypatch):
    """Ray starts a worker in the folder where Ray was started, which on a cluster is another one: the worker sees the
    output folder and loads the model all the same. Where there is no such folder it stays where it is."""
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "token").touch()
    (tmp_path / "model").symlink_to(tiny_model)
    settings = PredictSettings(Path("out"), Path("model"), device="cpu")
    monkeypatch.chdir("/")
    absent = CohortWorker(settings, Maker("0", "m", "x", {}), 1, "token", tmp_path / "nowhere")
    with pytest.raises(AcouslicError, match="does not see out"):
        absent.load()
    assert "cpu" in CohortWorker(settings, Maker("0", "m", "x", {}), 1, "token", tmp_path).load()


def test_a_bar_tells_the_time_so_far_from_the_rest(monkeypatch):
    """On a terminal: the second time is what is still to come, not the whole of which the first is a part."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", terminal)
    with Progress(300) as progress:
        progress.end_case("done")
        progress._bar.refresh()
    assert re.search(r"[0-9:]+ so far, about [0-9:?]+ more, ", terminal.getvalue())


def test_a_poisonous_case_fails_alone_after_two_tries(stacks, tiny_model, repository, tmp_path):
    """It ends its worker each time: two tries, one line of failure, exit code 1; the others are analysed once, in the
    table and in the Parquet file, and nothing is left of the tries."""
    import pyarrow.parquet

    folder, output, tries = stacks(["a", "b", "poison", "c", "d"]), tmp_path / "out", tmp_path / "tries"
    (tmp_path / "sitecustomize.py").write_text(f"""
import os, signal, sys
if any("default_worker" in word for word in sys.orig_argv):
    from algorithm import predict
    analyse = predict.analyse_case
    def poisonous(pipeline, sweep, *rest, **keywords):
        with open({str(tries)!r}, "a") as file:
            file.write(sweep.case + "\\n")
        if sweep.case == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return analyse(pipeline, sweep, *rest, **keywords)
    predict.analyse_case = poisonous
""")
    command = [sys.executable, "-m", "algorithm", "predict", str(folder), "--output", str(output)]
    command += ["--model", str(tiny_model), "--workers", "2", "--device", "cpu"]
    ended = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(repository)))},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("poison: its worker died 2 times")
    assert lines[-1].startswith("1 of 5 cases failed")
    assert sorted(tries.read_text().split()) == ["a", "b", "c", "d", "poison", "poison"]
    with (output / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], bool(row["error"])) for row in rows] == [
        (name, name == "poison") for name in ("a", "b", "c", "d", "poison")
    ]
    table = pyarrow.parquet.read_table(output / "results.parquet").to_pylist()
    assert [row["case"] for row in table] == [row["case"] for row in rows]
    assert isinstance(table[0]["presence_probability"], float)
    assert sorted(item.name for item in output.iterdir() if item.is_dir()) == ["a", "b", "c", "d"]
    assert not list(output.glob(".*"))


def test_dying_workers_change_nothing(tiny_model, capfd):
    """A few cases while workers are killed at random: the benchmark compares with an undisturbed run; no fault."""
    from bench.cohort import main

    code = main(["--parts", "kills", "--cases", "16", "--kills", "5", "--model", str(tiny_model)])
    said = capfd.readouterr().out
    report = json.loads(said.splitlines()[-1])
    assert (code, report["faults"]) == (0, 0), said
    assert report["kills"]["kills"] == 5


class PretendedRay:
    """Calls that end in a random order; `dies(case)` says whether the worker dies of a call."""

    class exceptions:  # noqa: N801 - the library's name
        class RayActorError(Exception):
            """A worker has died."""

        class OutOfMemoryError(Exception):
            """A worker was ended by Ray, for want of memory."""

        class RayTaskError(Exception):
            """A call has failed."""

    def __init__(self, dies, death=exceptions.RayActorError):
        self.random, self.dies, self.death = random.Random(3), dies, death
        self.tries, self.killed = Counter(), []

    def remote(self, _):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: self._actor()))

    def _actor(self):
        return SimpleNamespace(
            load=SimpleNamespace(remote=lambda: object()),
            analyse=SimpleNamespace(remote=lambda sweep, _, again: (object(), sweep, again)),
        )

    def kill(self, actor):
        self.killed.append(actor)

    def wait(self, calls, num_returns):
        return self.random.sample(calls, num_returns), None

    def get(self, call):
        if not isinstance(call, tuple):
            return "worker"
        _, sweep, again = call
        assert again == (self.tries[sweep.case] > 0)
        self.tries[sweep.case] += 1
        if self.dies(sweep.case):
            raise self.death("the worker died")
        return ResultRow(sweep.case, seconds=1.0)


def dispatched(ray, cases, tmp_path):
    """The rows of so many cases on two workers, in the order they came."""
    rows = []
    settings = PredictSettings(output_dir=tmp_path, model_dir=tmp_path)
    maker = Maker("0", "m", "x", {})
    hands = {"begin": lambda: None, "take": rows.append}
    dispatcher = Dispatcher(ray, Share(2, 1, 0), settings, maker, "token", **hands)
    dispatcher.run([SweepInput(tmp_path / f"{case}.mha", case) for case in cases])
    return rows


def test_a_hundred_deaths_in_three_hundred_cases(tmp_path):
    """Whichever workers die: every case gets its row, once, and none fails for it, though many were hit twice."""
    deaths = iter(sorted(random.Random(0).sample(range(350), 100)))
    state = {"call": -1, "next": next(deaths)}

    def dies(_):
        state["call"] += 1
        if state["call"] != state["next"]:
            return False
        state["next"] = next(deaths, None)
        return True

    ray = PretendedRay(dies)
    rows = dispatched(ray, [f"c{number}" for number in range(300)], tmp_path)
    assert len(rows) == 300
    assert len({row.case for row in rows}) == 300
    assert not [row for row in rows if row.error]
    assert state["next"] is None
    assert sum(ray.tries.values()) == 400
    assert max(ray.tries.values()) > 2
    # A worker that is only out of reach must not go on with its case beside the next.
    assert len(ray.killed) == 100


@pytest.mark.parametrize("poisons", [1, 3])
def test_poisonous_cases_fail_after_two_tries_each(poisons, tmp_path):
    """Where no case came through after a death, each is its own doing: no other fails, and none is tried again."""
    ray = PretendedRay(lambda case: case.startswith("poison"))
    rows = dispatched(ray, [f"poison{n}" for n in range(poisons)] + [f"c{n}" for n in range(20)], tmp_path)
    failed = {row.case for row in rows if row.error}
    assert failed == {f"poison{n}" for n in range(poisons)}
    assert len(rows) == 20 + poisons
    assert {case: count for case, count in ray.tries.items() if count > 1} == dict.fromkeys(failed, 2)


def test_a_poisonous_case_among_other_deaths_is_given_up_too(tmp_path):
    """Workers die of something else as well: it is tried a few times more, not for ever."""
    hit = {"c1": 1, "c5": 2}

    def dies(case):
        hit[case] = hit.get(case, 0) - 1
        return case == "poison" or hit[case] >= 0

    ray = PretendedRay(dies)
    rows = dispatched(ray, ["poison", *[f"c{n}" for n in range(10)]], tmp_path)
    assert {row.case for row in rows if row.error} == {"poison"}
    assert ray.tries["poison"] == 8
    assert (ray.tries["c1"], ray.tries["c5"]) == (2, 3)


def test_a_worker_that_ray_ends_for_want_of_memory_is_replaced(tmp_path):
    """Ray's memory monitor, which is on by default, has an error of its own, no kind of the one for other deaths."""
    import ray

    assert not issubclass(ray.exceptions.OutOfMemoryError, ray.exceptions.RayActorError)
    deaths = iter([True])
    pretended = PretendedRay(lambda _: next(deaths, False), PretendedRay.exceptions.OutOfMemoryError)
    rows = dispatched(pretended, ["a", "b", "c"], tmp_path)
    assert sorted((row.case, row.error) for row in rows) == [("a", ""), ("b", ""), ("c", "")]
    assert len(pretended.killed) == 1


def test_workers_that_die_while_they_load_end_the_run(tmp_path):
    """Instead of starting new ones for ever."""
    ray = PretendedRay(lambda _: False)
    ray.get = lambda _: (_ for _ in ()).throw(ray.exceptions.RayActorError("no memory"))
    with pytest.raises(AcouslicError, match="workers die while they load the model: no memory"):
        dispatched(ray, ["a", "b"], tmp_path)
