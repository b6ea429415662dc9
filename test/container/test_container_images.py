"""What the images are made of: users, labels, torch, size, and nothing that does not belong."""

import hashlib
import json
import os
import subprocess
import tarfile

import numpy as np
import pytest
import SimpleITK
import tifffile

from acouslic.stack import read_stack

LABEL = "org.grand-challenge.api-method"
PORT = "4743/tcp"
TRAINING_PACKAGES = ["open_clip", "peft", "timm", "lightning", "pytorch_lightning", "kornia", "transformers"]
SMALLEST_HIDDEN_WEIGHTS_BYTES = 1_000_000
LARGEST_IMAGE_BYTES = 10_000_000_000
"""The platform's."""
LARGEST_EVALUATION_BYTES = 800_000_000
"""Unpacked, its base included. SimpleITK is 276 MB of it, OpenCV with the libraries that it links 158."""


def test_each_tag_says_how_the_platform_runs_it(docker, invoke_image, exec_image, evaluation_image):
    """The two tags differ in label and default word; an image with the wrong label is started in the wrong way."""
    modes = {image: docker.inspect(image)["Config"] for image in (invoke_image, exec_image, evaluation_image)}
    assert {image: config["Labels"][LABEL] for image, config in modes.items()} == {
        invoke_image: "invoke",
        exec_image: "exec",
        evaluation_image: "exec",
    }
    assert modes[invoke_image]["Cmd"] == ["serve"]
    assert modes[exec_image]["Cmd"] == ["exec"]
    assert PORT in modes[invoke_image]["ExposedPorts"]
    assert docker.inspect(invoke_image)["RootFS"] == docker.inspect(exec_image)["RootFS"], "not from the same build"


@pytest.mark.parametrize("fixture", ["invoke_image", "exec_image", "evaluation_image"])
def test_the_user_is_numeric_known_and_not_root(docker, fixture, request):
    """The platform refuses root, and takes the home folder from the user's passwd entry, which must be writable."""
    image = request.getfixturevalue(fixture)
    user = docker.inspect(image)["Config"]["User"]
    uid, gid = (int(number) for number in user.split(":"))
    assert uid > 0
    assert gid > 0
    code = f"import pwd; entry = pwd.getpwuid({uid}); print(entry.pw_gid, entry.pw_dir)"
    assert docker.python(image, code).split() == [str(gid), "/tmp"]


@pytest.mark.parametrize("fixture", ["exec_image", "evaluation_image"])
def test_tmp_is_empty(docker, fixture, request):
    """/tmp is emptied by the platform, so nothing may be baked into it."""
    image = request.getfixturevalue(fixture)
    assert docker.python(image, "import os; print(os.listdir('/tmp'))").strip() == "[]"


def test_the_torch_of_the_base_image_is_untouched(docker, exec_image):
    """The torch in the image is the base image's, file for file: a CUDA 13 build does not start on the platform."""
    check = ["/opt/build/kept_torch.py", "check", "/opt/build/torch.json"]
    ended = docker.run(exec_image, check, ["--network", "none", "--entrypoint", "python3"])
    assert ended.exit_code == 0, ended.stderr
    base = os.environ.get("BASE_IMAGE")
    if base and docker("image", "inspect", base, check=False).returncode == 0:
        versions = [docker.python(image, "import torch; print(torch.__version__)") for image in (base, exec_image)]
        assert versions[0] == versions[1]


def test_the_check_of_torch_notices_another_one(docker, exec_image):
    """The check above can fail: another version on record is reported."""
    code = (
        "import json, runpy, sys; json.dump({'version': '1.0', 'record_sha256': ''}, open('/tmp/t.json', 'w'));"
        "sys.argv = ['kept_torch.py', 'check', '/tmp/t.json'];"
        "runpy.run_path('/opt/build/kept_torch.py', run_name='__main__')"
    )
    ended = docker.run(exec_image, ["-c", code], ["--network", "none", "--entrypoint", "python3"])
    assert ended.exit_code == 1
    assert "was replaced" in ended.last_line


def test_the_algorithm_runs_without_the_training_packages(docker, exec_image):
    """None of them is installed; torchvision, which base images bring, is never imported."""
    code = (
        "import importlib.util as util, sys, algorithm.serve, algorithm.predict, algorithm.pipeline\n"
        f"print([name for name in {TRAINING_PACKAGES} if util.find_spec(name)],"
        f" sorted(set(sys.modules) & {{*{TRAINING_PACKAGES}, 'torchvision'}}), 'torch' in sys.modules)"
    )
    assert docker.python(exec_image, code).strip() == "[] [] True"


def test_the_evaluation_has_no_torch(docker, evaluation_image):
    """The evaluation image has no torch and none of the algorithm's code."""
    code = "import importlib.util as util; print([util.find_spec(name) for name in ('torch', 'algorithm', 'training')])"
    assert docker.python(evaluation_image, code).strip() == "[None, None, None]"


@pytest.mark.parametrize(
    ("fixture", "packages"),
    [("exec_image", ["acouslic", "algorithm"]), ("evaluation_image", ["acouslic", "evaluation"])],
)
def test_the_image_holds_the_code_of_this_checkout(docker, fixture, packages, request, repository):
    """What is tested is what is here: an image built from other sources fails, and says to build again."""
    image = request.getfixturevalue(fixture)
    code = (
        "import hashlib, json, pathlib; root = pathlib.Path('/opt/acouslic');"
        "print(json.dumps({str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()"
        " for path in root.rglob('*') if path.is_file() and path.suffix != '.pyc'}))"
    )
    expected = {
        path.relative_to(repository).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for package in packages
        for path in (repository / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    in_image = json.loads(docker.python(image, code))
    differing = sorted(name for name in {*expected, *in_image} if expected.get(name) != in_image.get(name))
    assert not differing, f"{image} was built from other sources, run ./build.sh again: {differing}"


@pytest.mark.parametrize("fixture", ["exec_image", "evaluation_image"])
def test_our_code_is_compiled_in_the_image(docker, fixture, request):
    """Nothing can be compiled at run time on a read-only file system, so each module has its bytecode beside it; so
    have the evaluation's libraries."""
    code = (
        "import importlib.util as util, pathlib; tops = ('/opt/acouslic', '/opt/libraries');"
        "paths = [p for top in tops for p in pathlib.Path(top).rglob('*.py')];"
        "print(len(paths) > 0, [p for p in paths if not pathlib.Path(util.cache_from_source(str(p))).is_file()])"
    )
    assert docker.python(request.getfixturevalue(fixture), code).strip() == "True []"


def test_no_weights_are_in_the_image(docker, exec_image):
    """Weights come with the mounted model alone; what the base brings beside torch is none."""
    code = (
        "import os; print([os.path.join(folder, name) for top in ('/opt', '/srv', '/home', '/var')"
        " for folder, _, names in os.walk(top) for name in names"
        " if name.endswith(('.safetensors', '.pt', '.ckpt', '.onnx'))"
        f" and os.path.getsize(os.path.join(folder, name)) > {SMALLEST_HIDDEN_WEIGHTS_BYTES}])"
    )
    assert docker.python(exec_image, code).strip() == "[]"


def test_the_archives_hold_one_image_each_and_the_evaluation_is_small(exec_image, evaluation_image, tmp_path):
    """`docker save` gives one image with one tag, as the platform demands; the evaluation is below 800 MB unpacked."""
    archive = tmp_path / "image.tar"
    for image, largest_bytes in ((exec_image, LARGEST_IMAGE_BYTES), (evaluation_image, LARGEST_EVALUATION_BYTES)):
        with archive.open("wb") as file:
            subprocess.run(["docker", "save", image], stdout=file, check=True)
        with tarfile.open(archive) as content:
            manifest = json.load(content.extractfile("manifest.json"))
        assert [entry["RepoTags"] for entry in manifest] == [[image]]
        assert archive.stat().st_size < largest_bytes


def test_the_evaluation_reads_every_kind_of_mask(docker, evaluation_image, tmp_path):
    """What was removed of its libraries is needed by no reader: each codec and each format gives the same pixels."""
    frames = np.zeros((4, 32, 48), np.uint8)
    frames[1, 8:20, 10:30] = 1
    for name in ("none", "zlib", "lzw", "packbits", "zstd", "lzma", "jpeg"):
        compression = None if name == "none" else name
        tifffile.imwrite(tmp_path / f"{name}.tif", frames, photometric="minisblack", compression=compression)
    for name in ("x.mha", "x.nii.gz", "x.nrrd"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(frames), tmp_path / name, useCompression=True)
    for name in ("still.png", "still.jpg"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(frames[1]), tmp_path / name)
    tmp_path.chmod(0o755)
    code = (
        "import hashlib, json, pathlib; from acouslic.stack import read_stack;"
        "print(json.dumps({p.name: hashlib.sha256(read_stack(p).frames.tobytes()).hexdigest()"
        " for p in pathlib.Path('/masks').iterdir()}))"
    )
    in_image = json.loads(docker.python(evaluation_image, code, ["--volume", f"{tmp_path}:/masks:ro"]))
    here = {path.name: hashlib.sha256(read_stack(path).frames.tobytes()).hexdigest() for path in tmp_path.iterdir()}
    assert len(here) == 12
    assert in_image == here
