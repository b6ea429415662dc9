"""Exec mode and `predict` in real containers, as the platform and as people run them."""

import csv
import json
import shutil
import time

import pytest
import SimpleITK

SEGMENTATION = "images/fetal-abdomen-segmentation/output.mha"


def stack_of(case_dir):
    """The only image of a case in the platform's layout."""
    (stack,) = (case_dir / "images" / "stacked-fetal-ultrasound").iterdir()
    return stack


def test_one_case_as_the_platform_runs_it(docker, exec_image, mounts, check_output):
    """No network, read-only root, input behind a link, LD_LIBRARY_PATH gone, HOME elsewhere: results, stderr empty."""
    ended = docker.run_as_platform(exec_image, mounts.options())
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert mounts.written() == check_output.files
    check_output(mounts.output, stack_of(mounts.root / "platform" / "input"))
    assert all(len(line) < 64 * 1024 for line in ended.stdout.splitlines())
    assert ended.stdout


def test_the_default_folders_and_no_word_at_all(docker, exec_image, mounts, check_output):
    """Mounted at /input, /output and /opt/ml/model, without a setting and without CMD, the case runs the same."""
    case_dir = (mounts.root / "platform" / "input").resolve()
    volumes = [f"{case_dir}:/input:ro", f"{mounts.output}:/output", f"{mounts.model_dir}:/opt/ml/model:ro"]
    options = [word for volume in volumes for word in ("--volume", volume)]
    ended = docker.run(
        exec_image,
        ["-m", "algorithm"],
        ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--entrypoint", "python3", *options],
    )
    assert (ended.exit_code, ended.stderr) == (0, "")
    check_output(mounts.output, stack_of(case_dir))


def test_results_depend_on_neither_user_nor_platform_variables(docker, exec_image, mounts, not_ours):
    """Any number as user, without a passwd entry, and GRAND_CHALLENGE_* variables: the same bytes in every result."""
    assert docker.run_as_platform(exec_image, mounts.options()).exit_code == 0
    first = {name: (mounts.output / name).read_bytes() for name in mounts.written()}
    mounts.refill(0)
    variables = [word for name, value in not_ours.items() for word in ("--env", f"{name}={value}")]
    ended = docker.run_as_platform(exec_image, [*mounts.options(), "--user", "54321:12345", *variables])
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert {name: (mounts.output / name).read_bytes() for name in mounts.written()} == first
    assert (mounts.output / SEGMENTATION).stat().st_uid == 54321


def test_an_empty_model_folder_says_what_to_mount(docker, exec_image, mounts):
    """Without a mounted model there is one sentence, exit code 1 and no result: never a model from somewhere else."""
    ended = docker.run_as_platform(exec_image, mounts.options(model=False))
    assert ended.exit_code == 1
    assert "/opt/ml/model" in ended.last_line
    assert "mount" in ended.last_line
    assert len(ended.stderr.splitlines()) == 1
    assert mounts.written() == []


def no_image(case_dir):
    """The case's folder without its image."""
    stack_of(case_dir).unlink()


def two_images(case_dir):
    """A second image beside the first."""
    shutil.copy(stack_of(case_dir), stack_of(case_dir).with_name("second.mha"))


def truncated(case_dir):
    """The image's second half gone."""
    stack = stack_of(case_dir)
    stack.write_bytes(stack.read_bytes()[: stack.stat().st_size // 2])


@pytest.mark.parametrize("damage", [no_image, two_images, truncated])
def test_bad_input_is_one_sentence_and_no_file(docker, exec_image, mounts, tmp_path, damage):
    """A case that cannot be read: exit code 1, the reason as the last line of stderr, the output folder empty."""
    bad = tmp_path / "bad"
    shutil.copytree(mounts.cases[0], bad)
    damage(bad)
    mounts.refill(bad)
    ended = docker.run_as_platform(exec_image, mounts.options())
    assert ended.exit_code == 1
    assert "stacked-fetal-ultrasound" in ended.last_line
    assert "Traceback" not in ended.stderr
    assert mounts.written() == []


def test_an_unwritable_output_folder_is_named(docker, exec_image, mounts):
    """The output folder belongs to someone else: exit code 1 and a sentence that names it."""
    mounts.output.chmod(0o755)
    ended = docker.run_as_platform(exec_image, [*mounts.options(), "--user", "54321:54321"])
    assert ended.exit_code == 1
    assert "/output" in ended.last_line


def test_sigterm_ends_a_run_at_once_and_leaves_nothing(docker, exec_image, mounts):
    """The platform's stop signal, early in a run: gone within 5 s, no half-written result."""
    container = docker.create(
        exec_image, (), [*mounts.options(), "--network", "none", "--read-only", "--tmpfs", "/tmp"]
    )
    try:
        docker("start", container)
        time.sleep(1.5)
        docker("kill", "--signal", "TERM", container, check=False)
        exit_code = docker.wait(container, 5)
    finally:
        docker("rm", "--force", container)
    if exit_code != 0:  # a fast machine may have finished
        assert mounts.written() == []


def test_predict_serves_people(docker, invoke_image, mounts, release, check_output):
    """`docker run IMAGE predict FOLDER --output DIR` with any user: a folder a case, a table, a picture."""
    volumes = [
        f"{release / 'images' / 'stacked_fetal_ultrasound'}:/data:ro",
        f"{mounts.output}:/results",
        f"{mounts.model_dir}:/opt/ml/model:ro",
    ]
    options = ["--network", "none", "--user", "54321:54321"]
    options += [word for volume in volumes for word in ("--volume", volume)]
    ended = docker.run(invoke_image, ["predict", "/data", "--output", "/results"], options)
    assert (ended.exit_code, ended.stderr) == (0, "")
    stacks = sorted((release / "images" / "stacked_fetal_ultrasound").iterdir())
    with (mounts.output / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [stack.stem for stack in stacks]
    for stack in stacks:
        check_output(mounts.output / stack.stem, stack)
        picture = SimpleITK.ReadImage(str(mounts.output / stack.stem / "preview.png"))
        assert min(picture.GetSize()) > 100


def test_predict_expands_a_pattern_that_only_the_container_can(docker, invoke_image, mounts, release):
    """`predict '/data/*.mha'`: a shell outside the container cannot expand the pattern, so the program does."""
    volumes = [
        f"{release / 'images' / 'stacked_fetal_ultrasound'}:/data:ro",
        f"{mounts.output}:/results",
        f"{mounts.model_dir}:/opt/ml/model:ro",
    ]
    options = [word for volume in volumes for word in ("--volume", volume)]
    words = ["predict", "/data/*.mha", "--output", "/results"]
    ended = docker.run(invoke_image, words, ["--network", "none", *options])
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert len([path for path in mounts.output.iterdir() if path.is_dir()]) == len(mounts.cases)
    assert json.loads(next(mounts.output.glob("*/fetal-abdomen-frame-number.json")).read_text()) >= -1
