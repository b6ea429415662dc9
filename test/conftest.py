"""What all tests share: the policy for missing data, and the data itself."""

import http.client
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# As the algorithm's own command line does it (see there): where tests share the cores, spinning threads take minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip without a CUDA device. No GPU is promised to CI, so this skip is never a failure."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def skip_or_fail(reason: str) -> None:
    """Skip, saying why; where CI_REQUIRE_ALL=1 the same absence is a failure."""
    if os.environ.get("CI_REQUIRE_ALL") == "1":
        pytest.fail(f"CI_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal() -> Iterator[None]:
    """Each test starts with both signals heard, and a program that ran in this process leaves them as they were.

    A shell's background, and a finished run of the algorithm, ignore them, and child processes would inherit that.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if handler is not None:  # one that was not set from Python cannot be set from it
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of facts and real images that lies beside the repository, or where ACOUSLIC_SHARED points."""
    folder = Path(os.environ.get("ACOUSLIC_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        skip_or_fail(f"{folder} is not there: set ACOUSLIC_SHARED to the folder with data/golden, data/acouslic, tools")
    return folder


@pytest.fixture(scope="session")
def make_case_result() -> Callable[..., Any]:
    """Builds a CaseResult from what a test cares about; by default 840 unannotated frames and no chosen one."""
    from acouslic.geometry import FRAMES_PER_CASE
    from evaluation.metrics.case_result import CaseResult
    from evaluation.metrics.official import CASE_METRICS

    def build(case: str = "case", labels: np.ndarray | None = None, **fields: Any) -> CaseResult:
        official = dict.fromkeys(CASE_METRICS, 0.0) | {"nae_circumference": 1.0, "NearestAnnotatedFrame": -1.0}
        defaults: dict[str, Any] = {
            "subject_id": None,
            "frame_number": -1,
            "undefined_overlap": False,
            "both_empty": False,
            "reference_ac_mm": None,
            "predicted_ac_mm": None,
            "annotated_sweeps": (False,) * 6,
        }
        official |= fields.pop("official", {})
        frame_labels = np.zeros(FRAMES_PER_CASE, dtype=np.uint8) if labels is None else labels
        return CaseResult(case=case, frame_labels=frame_labels, official=official, **(defaults | fields))

    return build


@pytest.fixture(scope="session")
def chromium() -> str:
    """The headless browser that reports are opened in."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    skip_or_fail("no Chromium is installed, so no report can be opened")
    raise AssertionError("not reached")


class SmallChallenge:
    """A phase in small, in the platform's layout: ground truth, input and output folders, stacks of 150 x 40 x 60.

    Frames 0..139 are sweep 1, 140..149 sweep 2. Nothing is written before it is asked for.
    """

    frames, rows, columns = 150, 40, 60

    def __init__(self, root: Path) -> None:
        self.input_dir, self.output_dir = root / "input", root / "output"
        self.ground_truth_dir = root / "ground_truth_of_phase"
        self.jobs: list[dict[str, Any]] = []
        for folder in (self.input_dir, self.output_dir, self.ground_truth_dir):
            folder.mkdir(parents=True)

    def disc(self, x: float = 30, y: float = 20, semi_axes: tuple[float, float] = (14, 10)) -> np.ndarray:
        """A filled upright ellipse, bool (rows, columns)."""
        rows, columns = np.mgrid[: self.rows, : self.columns]
        return ((columns - x) / semi_axes[0]) ** 2 + ((rows - y) / semi_axes[1]) ** 2 <= 1

    def stack(self, masks: dict[int, np.ndarray]) -> np.ndarray:
        """uint8 (frames, rows, columns) with these masks (or label images) in these frames."""
        stack = np.zeros((self.frames, self.rows, self.columns), np.uint8)
        for frame_index, mask in masks.items():
            stack[frame_index] = mask
        return stack

    def write_image(self, path: Path, pixels: np.ndarray, spacing_mm: float = 0.28) -> Path:
        """Any image SimpleITK can write, square pixels, compressed."""
        import SimpleITK

        path.parent.mkdir(parents=True, exist_ok=True)
        image = SimpleITK.GetImageFromArray(pixels)
        image.SetSpacing((spacing_mm, spacing_mm, 1.0)[: image.GetDimension()])
        SimpleITK.WriteImage(image, str(path), True)
        return path

    def add_truth(self, case: str, labels: dict[int, int], sweep_ac_mm: tuple[float | None, ...] = (20.0,)) -> None:
        """A case's reference: the disc with a label in each of these frames; six sweeps, those not given null."""
        folder = self.ground_truth_dir / case
        label_stack = self.stack({frame_index: label * self.disc() for frame_index, label in labels.items()})
        self.write_image(folder / "fetal_abdomen_stacked_masks" / f"{case}.mha", label_stack)
        values = (*sweep_ac_mm, *[None] * 6)[:6]
        circumferences = {f"sweep_{number}_ac_mm": value for number, value in enumerate(values, start=1)}
        (folder / "fetal_abdominal_circumference.json").write_text(json.dumps(circumferences))

    def add_job(self, case: str, frame_number: int, mask: np.ndarray | None = None) -> dict[str, Any]:
        """A succeeded job with its output files; by default the disc in the chosen frame. Returns the job's entry."""
        pk = f"job-of-{case}"
        output = self.input_dir / pk / "output"
        mask = self.disc() if mask is None else mask
        masks = {frame_number: mask} if 0 <= frame_number < self.frames else {}
        self.write_image(output / "images/fetal-abdomen-segmentation/abc.mha", self.stack(masks))
        (output / "fetal-abdomen-frame-number.json").write_text(json.dumps(frame_number))
        image, value = "images/stacked-fetal-ultrasound", "fetal-abdomen-frame-number"
        job = {
            "pk": pk,
            "inputs": [
                {
                    "socket": {"slug": "stacked-fetal-ultrasound", "relative_path": image},
                    "image": {"name": f"{case}.mha"},
                }
            ],
            "outputs": [
                {"socket": {"slug": value, "relative_path": f"{value}.json"}, "value": frame_number},
                {
                    "socket": {
                        "slug": "fetal-abdomen-segmentation",
                        "relative_path": "images/fetal-abdomen-segmentation",
                    },
                    "image": {"name": "output.mha"},
                },
            ],
            "status": "Succeeded",
            "exec_duration": "P0DT00H00M42.5S",
            "invoke_duration": None,
        }
        self.jobs.append(job)
        return job

    def output_of(self, case: str) -> Path:
        """The output folder of a case's job."""
        return self.input_dir / f"job-of-{case}" / "output"

    def save(self) -> None:
        """Write `predictions.json` from `jobs`."""
        (self.input_dir / "predictions.json").write_text(json.dumps(self.jobs))

    def environment(self) -> dict[str, str]:
        """Where the container finds its folders."""
        return {
            "INPUT_DIR": str(self.input_dir),
            "OUTPUT_DIR": str(self.output_dir),
            "GROUND_TRUTH_DIR": str(self.ground_truth_dir),
        }

    def score(self) -> list[Any]:
        """The results of all cases, in this process: what the container does between its folders, without workers."""
        from evaluation.case_evaluation import CaseTask, evaluate_case
        from evaluation.inputs.ground_truth import find_official
        from evaluation.inputs.predictions import check_cases, read_platform_predictions

        self.save()
        sources = find_official(self.ground_truth_dir)
        submissions = read_platform_predictions(self.input_dir)
        check_cases([submission.case for submission in submissions], sources)
        return [evaluate_case(CaseTask(sources[item.case], item, None, False, None)) for item in submissions]


@pytest.fixture
def challenge(tmp_path: Path) -> SmallChallenge:
    """An empty small phase."""
    return SmallChallenge(tmp_path)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of random weights: images of 56 x 56, two members with all heads. Copy it to change it."""
    from bench.setting.random_artifact import main

    folder = tmp_path_factory.mktemp("model") / "tiny"
    main(["--config", "tiny", "--members", "2", "--adapted-blocks", "2", "--out", str(folder)])
    return folder


class PlatformCase:
    """`/input` and `/output` of one case of the platform, empty at first."""

    def __init__(self, root: Path) -> None:
        self.input_dir, self.output_dir = root / "input", root / "output"
        self.sweep_dir = self.input_dir / "images" / "stacked-fetal-ultrasound"
        self.sweep_dir.mkdir(parents=True)
        self.output_dir.mkdir()

    def write_sweep(
        self, frames: np.ndarray, name: str = "f3a.mha", case: str = "case 1.mha", spacing_mm: float = 0.28
    ) -> Path:
        """A stack (frames, rows, columns) under any file name, and the `inputs.json` that names the case."""
        import SimpleITK

        image = SimpleITK.GetImageFromArray(frames)
        image.SetSpacing((spacing_mm, spacing_mm, 1.0)[: image.GetDimension()])
        path = self.sweep_dir / name
        SimpleITK.WriteImage(image, str(path), True)
        socket = {"slug": "stacked-fetal-ultrasound", "relative_path": "images/stacked-fetal-ultrasound"}
        entry = {"socket": socket, "image": {"pk": "1", "name": case}, "value": None, "file": None}
        (self.input_dir / "inputs.json").write_text(json.dumps([entry]))
        return path

    def written(self) -> list[str]:
        """Every file below the output folder, hidden ones too, by its relative path."""
        return sorted(
            path.relative_to(self.output_dir).as_posix() for path in self.output_dir.rglob("*") if path.is_file()
        )


@pytest.fixture
def platform_case(tmp_path: Path) -> PlatformCase:
    """An empty case."""
    return PlatformCase(tmp_path)


@pytest.fixture
def speckle() -> Callable[..., np.ndarray]:
    """`speckle(frames, rows, columns)`: a uint8 stack of noise with a brighter ellipse in its middle frames."""

    def draw(frames: int = 24, rows: int = 40, columns: int = 60, seed: int = 0) -> np.ndarray:
        stack = np.random.default_rng(seed).integers(0, 120, (frames, rows, columns), dtype=np.uint8)
        y, x = np.ogrid[:rows, :columns]
        inside = ((x - columns / 2) / (columns * 0.3)) ** 2 + ((y - rows / 2) / (rows * 0.35)) ** 2 <= 1
        stack[frames // 3 : 2 * frames // 3, inside] += 130
        return stack

    return draw


@pytest.fixture(scope="session")
def write_ultrasound() -> Callable[..., Any]:
    """`write(path, frames, **values)`: an ultrasound file, 40 x 60, of a made-up Jane Doe, of several frames or,
    with None, of one. A value of None leaves its attribute out. Returns the file as a `SourceFile`."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import (
        ExplicitVRLittleEndian,
        UltrasoundImageStorage,
        UltrasoundMultiFrameImageStorage,
        generate_uid,
    )

    from acouslic.reading.source import SourceFile

    rows, columns = 40, 60

    def write(path, frames, **values):
        several = frames is not None
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage if several else UltrasoundImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset(str(path), Dataset(), file_meta=meta, preamble=b"\0" * 128)
        fields = {
            "SOPClassUID": meta.MediaStorageSOPClassUID,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "StudyInstanceUID": "1.2.3.4",
            "SeriesInstanceUID": "1.2.3.4.5",
            "PatientName": "Doe^Jane",
            "PatientID": "12345",
            "PatientBirthDate": "19990101",
            "PatientSex": "F",
            "StudyDate": "20261129",
            "StudyTime": "010203",
            "StudyID": "1",
            "AccessionNumber": "",
            "ReferringPhysicianName": "",
            "SeriesNumber": 1,
            "InstanceNumber": 1,
            "Modality": "US",
            "Rows": rows,
            "Columns": columns,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 8,
            "BitsStored": 8,
            "HighBit": 7,
            "PixelRepresentation": 0,
        }
        for keyword, value in (fields | ({"NumberOfFrames": frames} if several else {}) | values).items():
            if value is not None:
                setattr(dataset, keyword, value)
        region = Dataset()
        region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
        region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = columns - 1, rows - 1
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.PhysicalDeltaX = region.PhysicalDeltaY = 0.028
        dataset.SequenceOfUltrasoundRegions = [region]
        pixels = np.random.default_rng(0).integers(1, 200, (frames or 1, rows, columns), dtype=np.uint8)
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(path, enforce_file_format=True)
        uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPClassUID, dataset.SOPInstanceUID)
        return SourceFile(path, frames or 1, *uids)

    return write


@dataclass(frozen=True)
class Ended:
    """What the algorithm's command line left behind."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def restored_process() -> Iterator[None]:
    """A program owns its process and sets up signals and logging for good; a test has to undo that."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    on_signal = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in on_signal.items():
        signal.signal(number, handler)
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("algorithm.case").setLevel(logging.NOTSET)


@pytest.fixture
def run_algorithm(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    restored_process: None,  # noqa: ARG001 - for what it does at the end
) -> Callable[..., Ended]:
    """`run_algorithm(*arguments, **environment)`: `python -m algorithm` without a new process."""

    def run(*arguments: object, **environment: object) -> Ended:
        from algorithm.__main__ import main

        monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
        # Several threads gain nothing on images this small, and lose much where other tests run beside these.
        monkeypatch.setattr("algorithm.process.cores.cgroup_cpus", lambda: 1.0)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return run


@dataclass(frozen=True)
class TinyTraining:
    """What a training test starts from: a few small generated cases, prepared, and a tower to match."""

    release: Path
    cache: Path
    paper_split: Path
    subject_split: Path
    tower_config: Path

    def fit_arguments(self, out: Path, *more: str) -> list[str]:
        """Of `python -m training fit`, for a run of seconds."""
        fast = ["--machine.accelerator=cpu", "--machine.precision=32-true", "--machine.threads=1"]
        sizes = ["--adapter.rank=2", "--adapter.last_blocks=2", "--heads.filters=1", "--sampling.min_positive_pixels=1"]
        steps = ["--optimiser.batch_size=8", "--optimiser.epochs=2", "--augment.clahe=0"]
        tower = [f"--tower.config={self.tower_config}", "--tower.random_init=true"]
        return [f"--cache={self.cache}", f"--out={out}", *fast, *sizes, *steps, *tower, *more]


@pytest.fixture(scope="session")
def tiny_training(tmp_path_factory: pytest.TempPathFactory) -> TinyTraining:
    """Seven generated cases of 2 x 24 frames at 28 pixels, both splits, and a four-block tower of width 16."""
    from training.phantom import generate
    from training.release import prepare, split

    root = tmp_path_factory.mktemp("tiny-training")
    release, cache = root / "release", root / "cache"
    small = ["--cases=7", "--rows=120", "--sweeps=2", "--frames-per-sweep=24", "--seed=8"]
    assert generate.main([f"--out={release}", *small]) == 0
    assert prepare.main([f"--raw={release}", f"--out={cache}", "--image-size=28", "--antialias"]) == 0
    table = release / "circumferences" / "fetal_abdominal_circumferences_per_sweep.csv"
    paper, subject = root / "paper.json", root / "subject.json"
    assert split.main(["--protocol=paper", f"--csv={table}", f"--cache={cache}", f"--out={paper}"]) == 0
    folds = ["--protocol=subject", "--folds=3"]
    assert split.main([*folds, f"--csv={table}", f"--cache={cache}", f"--out={subject}"]) == 0
    config = root / "tower.json"
    vision = {"image_size": 28, "patch_size": 14, "width": 16, "layers": 4, "head_width": 8}
    config.write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision}), encoding="utf-8")
    return TinyTraining(release, cache, paper, subject, config)


def free_port():
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A real `python -m algorithm serve`, its streams in files."""

    def __init__(self, root, input_dir, output_dir, model_dir, repository, options):
        self.port = free_port()
        self.log, self.errors = root / "stdout.txt", root / "stderr.txt"
        variables = os.environ | {
            "INPUT_DIR": str(input_dir),
            "OUTPUT_DIR": str(output_dir),
            "MODEL_DIR": str(model_dir),
        }
        command = [sys.executable, "-m", "algorithm", "serve", "--port", str(self.port), *options]
        with self.log.open("wb") as log, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, env=variables, cwd=repository, stdout=log, stderr=errors, start_new_session=True
            )

    def ask(self, method, path, timeout_s=600):
        """Status, body and headers of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode(), dict(response.getheaders())
        finally:
            connection.close()

    def wait_until_ready(self):
        """All answers of /health until it says 200; refused connections do not count."""
        statuses = []
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            try:
                statuses.append(self.ask("GET", "/health")[0])
            except OSError:
                assert self.process.poll() is None, self.errors.read_text()
            else:
                if statuses[-1] == 200:
                    return statuses
            time.sleep(0.02)
        raise AssertionError("the server did not become ready")

    def stop(self):
        """SIGTERM to the process group, as the platform does; the exit code and how long it took."""
        start = time.monotonic()
        os.killpg(self.process.pid, signal.SIGTERM)
        code = self.process.wait(timeout=20)
        return code, time.monotonic() - start


@pytest.fixture
def start_server(tmp_path, platform_case, tiny_model, repository):
    """`start_server(model)`; whatever was started is killed at the end."""
    started = []

    def start(*options, model_dir=tiny_model, input_dir=platform_case.input_dir):
        started.append(Server(tmp_path, input_dir, platform_case.output_dir, model_dir, repository, options))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()
