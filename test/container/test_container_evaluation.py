"""The evaluation's container on the platform's layout, fed by the algorithm's container and by perfect answers."""

import csv
import json
import shutil
import tarfile
import uuid

import numpy as np
import pytest
import SimpleITK

from acouslic.ellipse import circumference_mm, fit_ellipse
from acouslic.fov import field_of_view
from acouslic.geometry import FRAMES_PER_SWEEP, SPACING_MM
from acouslic.release import CaseCircumferences, Release, read_circumferences, write_circumferences
from acouslic.write import write_mask_stack

SWEEPS = 6


class Phase:
    """A phase of the challenge in the evaluation's folders: ground truth, jobs, and where metrics go."""

    def __init__(self, root, release_root):
        self.release = Release(release_root)
        self.input, self.output, self.truth = root / "input", root / "output", root / "truth"
        for folder in (self.input, self.output, self.truth):
            folder.mkdir(parents=True)
            folder.chmod(0o777)
        self.jobs = []

    def add_job(self, case: str):
        """A succeeded job for a case; its output folder, to be filled."""
        pk = str(uuid.uuid5(uuid.NAMESPACE_OID, case))
        number, mask = "fetal-abdomen-frame-number", "images/fetal-abdomen-segmentation"
        job_input = {"socket": {"slug": "stacked-fetal-ultrasound"}, "image": {"name": f"{case}.mha"}}
        job_outputs = [
            {"socket": {"slug": number, "relative_path": f"{number}.json"}, "value": None},
            {"socket": {"slug": "fetal-abdomen-segmentation", "relative_path": mask}, "image": {"name": "output.mha"}},
        ]
        self.jobs.append({"pk": pk, "inputs": [job_input], "outputs": job_outputs, "status": "Succeeded"})
        folder = self.input / pk / "output"
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        return folder

    def pack_truth(self, docker, image):
        """The ground truth archive, made in the container, and extracted as the platform does."""
        volumes = [f"{self.release.root}:/raw:ro", f"{self.truth}:/packed"]
        options = [word for volume in volumes for word in ("--volume", volume)]
        words = ["pack", "--raw", "/raw", "--out", "/packed/ground_truth.tar.gz"]
        ended = docker.run(image, words, ["--network", "none", "--user", "0", *options])
        assert (ended.exit_code, ended.stderr) == (0, "")
        with tarfile.open(self.truth / "ground_truth.tar.gz") as archive:
            archive.extractall(self.truth, filter="data")
        (self.truth / "ground_truth.tar.gz").unlink()

    def evaluate(self, docker, image):
        """Run the container as the platform does; how it ended."""
        (self.input / "predictions.json").write_text(json.dumps(self.jobs))
        for path in [self.input, *self.input.rglob("*"), self.truth, *self.truth.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        volumes = [
            f"{self.input}:/input:ro",
            f"{self.truth}:/opt/ml/input/data/ground_truth:ro",
            f"{self.output}:/output",
        ]
        return docker.run_as_platform(image, [word for volume in volumes for word in ("--volume", volume)])

    def metrics(self):
        """`metrics.json`, refusing what the platform would rank as nothing."""

        def refuse(constant: str):
            raise AssertionError(f"metrics.json holds {constant}")

        return json.loads((self.output / "metrics.json").read_text(), parse_constant=refuse)


def leaves(value, path=""):
    """Every key path and value of a nested JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            assert "." not in key, f"{path}: the platform cannot address the key {key}"
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value


@pytest.fixture(scope="module")
def reference_release(full_release, tmp_path_factory):
    """The generated cases, their circumferences replaced by the official fit to each sweep's best annotated mask.

    What was drawn and what is fitted to its pixels differ by tenths of a millimetre; a perfect answer has none to
    differ. Without images: the evaluation never sees one.
    """
    release, own = Release(full_release), Release(tmp_path_factory.mktemp("reference"))
    rows = []
    for row in read_circumferences(release.circumferences_path).values():
        own.mask_path(row.uuid).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(release.mask_path(row.uuid), own.mask_path(row.uuid))
        labels = labels_of(own, row.uuid)
        values = []
        for sweep in range(SWEEPS):
            frame = best_frame(labels, range(sweep * FRAMES_PER_SWEEP, (sweep + 1) * FRAMES_PER_SWEEP))
            values.append(None if frame is None else measured_mm(labels[frame]))
        rows.append(CaseCircumferences(row.uuid, row.subject_id, tuple(values)))
    write_circumferences(own.circumferences_path, rows)
    return own.root


def labels_of(release, case):
    """A case's label stack, uint8 (frame, row, column)."""
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(release.mask_path(case))))


def best_frame(labels, frames):
    """An optimal frame (label 1) of those given where there is one, else a suboptimal one, else None."""
    present = {label: [frame for frame in frames if (labels[frame] == label).any()] for label in (1, 2)}
    return next(iter(present[1] + present[2]), None)


def measured_mm(mask):
    """The circumference that the official evaluator would measure."""
    return circumference_mm(fit_ellipse(mask > 0, field_of_view(*mask.shape)), (SPACING_MM, SPACING_MM))


def test_a_perfect_prediction_scores_exactly_one(docker, evaluation_image, reference_release, tmp_path):
    """The reference handed in as the answer: every official metric at its best, and the score 1.0 to the last digit."""
    phase = Phase(tmp_path, reference_release)
    for case in read_circumferences(phase.release.circumferences_path):
        labels = labels_of(phase.release, case)
        frame = best_frame(labels, range(len(labels)))
        folder = phase.add_job(case)
        (folder / "fetal-abdomen-frame-number.json").write_text(str(frame))
        (folder / "images" / "fetal-abdomen-segmentation").mkdir(parents=True)
        mask_path = folder / "images" / "fetal-abdomen-segmentation" / "output.mha"
        write_mask_stack(mask_path, labels[frame] > 0, frame, len(labels), (SPACING_MM, SPACING_MM))
    phase.pack_truth(docker, evaluation_image)
    ended = phase.evaluate(docker, evaluation_image)
    assert (ended.exit_code, ended.stderr) == (0, "")
    metrics = phase.metrics()
    assert metrics["score"]["mean"] == 1.0
    assert metrics["DiceCoefficientSoft"]["mean"] == metrics["wfss"]["mean"] == 1.0
    assert metrics["nae_circumference"]["mean"] == metrics["HausdorffDistance"]["mean"] == 0.0


def test_from_sweeps_to_the_leaderboard(docker, exec_image, evaluation_image, full_release, model_dir, tmp_path):
    """Generated cases through the algorithm's container and what it wrote through the evaluation's: finite metrics."""
    phase = Phase(tmp_path, full_release)
    for case in phase.release.cases():
        folder = phase.add_job(case)
        volumes = [
            f"{full_release / 'platform' / case}:/input:ro",
            f"{folder}:/output",
            f"{model_dir}:/opt/ml/model:ro",
        ]
        options = [word for volume in volumes for word in ("--volume", volume)]
        ended = docker.run_as_platform(exec_image, options)
        assert (ended.exit_code, ended.stderr) == (0, "")
    phase.pack_truth(docker, evaluation_image)
    ended = phase.evaluate(docker, evaluation_image)
    assert (ended.exit_code, ended.stderr) == (0, "")

    metrics = phase.metrics()
    bad = [path for path, value in leaves(metrics) if isinstance(value, float) and not np.isfinite(value)]
    assert not bad
    # The demo model was trained on sweeps like these, so a broken chain shows: a frame that is none of the annotated
    # ones, or a circumference that is off, costs more than a quarter.
    assert metrics["score"]["mean"] > 0.75
    with (phase.output / "per_case.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == sorted(phase.release.cases())
    report = (phase.output / "report.html").read_text()
    assert all(row["case"] in report for row in rows)


def test_a_submission_that_lacks_a_case_is_refused(docker, evaluation_image, reference_release, tmp_path):
    """Exit code 1 and one sentence that names the case; no metrics."""
    phase = Phase(tmp_path, reference_release)
    case, missing = read_circumferences(phase.release.circumferences_path)
    folder = phase.add_job(case)
    (folder / "fetal-abdomen-frame-number.json").write_text("-1")
    (folder / "images" / "fetal-abdomen-segmentation").mkdir(parents=True)
    labels = labels_of(phase.release, case)
    mask_path = folder / "images" / "fetal-abdomen-segmentation" / "output.mha"
    write_mask_stack(mask_path, np.zeros(labels.shape[1:], bool), None, len(labels), (SPACING_MM, SPACING_MM))
    phase.pack_truth(docker, evaluation_image)
    ended = phase.evaluate(docker, evaluation_image)
    assert ended.exit_code == 1
    assert missing in ended.last_line
    assert not (phase.output / "metrics.json").exists()
