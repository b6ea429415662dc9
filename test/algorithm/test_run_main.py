"""Exec mode from the command line: what good and bad input gets."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK

from algorithm.__main__ import main
from algorithm.model.manifest import SCHEMA_VERSION

RESULT_FILES = [
    "fetal-abdomen-frame-number.json",
    "fetal-abdominal-circumference.json",
    "frame-quality-scores.json",
    "images/fetal-abdomen-segmentation/output.mha",
]


def environment(case, model):
    """The three folders of a run."""
    return {"INPUT_DIR": case.input_dir, "OUTPUT_DIR": case.output_dir, "MODEL_DIR": model}


def raw_mha(path, pixels, **changes):
    """An uncompressed MetaImage written by hand, so that its header can say anything."""
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "ElementSpacing": "0.28 0.28 1",
        "DimSize": "60 40 24",
        "ElementType": "MET_UCHAR",
    }
    header |= changes
    text = "".join(f"{key} = {value}\n" for key, value in header.items()) + "ElementDataFile = LOCAL\n"
    path.write_bytes(text.encode() + pixels)


def sweep_path(case):
    """Where the case's only image lies."""
    return case.sweep_dir / "f3a.mha"


# Each changes a good case into a bad one; the pattern is what the sentence must say.
def no_image(case, _):
    sweep_path(case).unlink()


def two_images(case, _):
    shutil.copy(sweep_path(case), case.sweep_dir / "second.tiff")


def not_an_image(case, _):
    sweep_path(case).write_bytes(b"hello\n" * 100)


def truncated(case, _):
    content = sweep_path(case).read_bytes()
    sweep_path(case).write_bytes(content[: len(content) // 2])


def too_few_pixels(case, frames):
    raw_mha(sweep_path(case), frames.tobytes()[:-1])


def too_many_pixels(case, frames):
    raw_mha(sweep_path(case), frames.tobytes() + b"\0")


def compressed_ends_early(case, frames):
    import zlib

    packed = zlib.compress(frames[:-1].tobytes())
    raw_mha(sweep_path(case), packed, CompressedData="True", CompressedDataSize=str(len(packed)))


def compressed_inflates_past_its_size(case, frames):
    import zlib

    packed = zlib.compress(np.concatenate([frames, frames]).tobytes())
    raw_mha(sweep_path(case), packed, CompressedData="True", CompressedDataSize=str(len(packed)))


def nifti(case, frames):
    sweep_path(case).unlink()
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(frames), str(case.sweep_dir / "sweep.nii.gz"))


def dicom(case, _):
    sweep_path(case).write_bytes(bytes(128) + b"DICM" + bytes(2000))


def flat(case, frames):
    raw_mha(sweep_path(case), frames[0].tobytes(), NDims="2", DimSize="60 40", ElementSpacing="0.28 0.28")


def colour(case, frames):
    channels = np.stack([frames, 255 - frames, frames], axis=-1)  # equal ones are grey, which is read
    raw_mha(sweep_path(case), channels.tobytes(), ElementNumberOfChannels="3")


def int16_with_a_negative(case, frames):
    values = frames.astype(np.int16)
    values[7, 3, 3] = -1
    raw_mha(sweep_path(case), values.tobytes(), ElementType="MET_SHORT")


def float_with_a_fraction(case, frames):
    values = frames.astype(np.float32)
    values[7, 3, 3] = 0.5
    raw_mha(sweep_path(case), values.tobytes(), ElementType="MET_FLOAT")


def zero_frames(case, _):
    raw_mha(sweep_path(case), b"", DimSize="60 40 0")


def nan_spacing(case, frames):
    raw_mha(sweep_path(case), frames.tobytes(), ElementSpacing="nan 0.28 1")


BAD_SWEEPS = [
    (no_image, "expected exactly one image"),
    (two_images, "expected exactly one image"),
    (not_an_image, "f3a.mha"),
    (truncated, "f3a.mha"),
    (too_few_pixels, "f3a.mha"),
    (too_many_pixels, "f3a.mha"),
    (compressed_ends_early, "f3a.mha"),
    (compressed_inflates_past_its_size, "f3a.mha"),
    (nifti, "sweep.nii.gz"),
    (dicom, "DICOM"),
    (flat, "2-D"),
    (colour, "f3a.mha"),
    (int16_with_a_negative, "0..255"),
    (float_with_a_fraction, "0..255"),
    (zero_frames, "f3a.mha"),
    (nan_spacing, "pacing"),
]


def assert_refused(ended, case, expected):
    """Exit code 1, one sentence on stderr that says it, and no file of any kind."""
    assert ended.code == 1
    (sentence,) = ended.stderr.splitlines()
    assert expected in sentence
    assert "bug in this program" not in sentence
    assert case.written() == []


@pytest.mark.parametrize(("spoil", "expected"), BAD_SWEEPS, ids=[spoil.__name__ for spoil, _ in BAD_SWEEPS])
def test_a_bad_sweep_is_refused(spoil, expected, platform_case, speckle, tiny_model, run_algorithm):
    """One sentence that names what is wrong, exit code 1, nothing written, the results of an earlier run gone."""
    frames = speckle()
    platform_case.write_sweep(frames)
    spoil(platform_case, frames)
    (platform_case.output_dir / RESULT_FILES[0]).write_text("3")
    assert_refused(run_algorithm(**environment(platform_case, tiny_model)), platform_case, expected)


def test_a_bad_sweep_fails_its_invoke_and_no_other(platform_case, speckle, start_server):
    """Each of them through one server: 500 with the sentence, nothing written; a good one afterwards is analysed."""
    frames = speckle()
    server = start_server()
    server.wait_until_ready()
    for spoil, expected in BAD_SWEEPS:
        for path in platform_case.sweep_dir.iterdir():
            path.unlink()
        platform_case.write_sweep(frames)
        spoil(platform_case, frames)
        status, body, _ = server.ask("POST", "/invoke")
        assert status == 500, spoil.__name__
        assert expected in body, spoil.__name__
        assert server.errors.read_text().splitlines()[-1] == body.strip()
        assert platform_case.written() == []
    for path in platform_case.sweep_dir.iterdir():
        path.unlink()
    platform_case.write_sweep(frames)
    assert server.ask("POST", "/invoke")[0] == 201
    assert len(platform_case.written()) == len(RESULT_FILES)


@pytest.mark.parametrize("black", [True, False], ids=["black frames only", "speckle"])
def test_the_platform_reads_one_image(black, platform_case, speckle, tiny_model, run_algorithm, tmp_path):
    """panimg makes one image of a run's output folder; of 840 black frames too: not suitable, a mask of nothing."""
    from panimg import convert

    frames = np.zeros((840, 40, 60), np.uint8) if black else speckle(840)
    platform_case.write_sweep(frames)
    assert run_algorithm(**environment(platform_case, tiny_model)).code == 0
    measured = json.loads((platform_case.output_dir / RESULT_FILES[1]).read_text())
    folder = (platform_case.output_dir / RESULT_FILES[3]).parent
    result = convert(input_directory=folder, output_directory=tmp_path / "converted")
    (image,), (file,) = result.new_images, result.new_image_files
    assert (image.width, image.height, image.depth) == (60, 40, 840)
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file.file)))
    written = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "output.mha")))
    assert np.array_equal(mask, written)
    if black:
        assert (measured["suitable"], measured["circumference_mm"]) == (False, None)
        assert not mask.any()


@pytest.mark.parametrize(("dtype", "element"), [("<i2", "MET_SHORT"), ("<f4", "MET_FLOAT"), ("<u2", "MET_USHORT")])
def test_other_types_with_whole_grey_levels_are_as_good(
    dtype, element, platform_case, speckle, tiny_model, run_algorithm
):
    """int16, uint16 and float frames of whole numbers give the scores that uint8 gives."""
    frames = speckle()
    scores = []
    for pixels, kind in ((frames, "MET_UCHAR"), (frames.astype(dtype), element)):
        raw_mha(sweep_path(platform_case), pixels.tobytes(), ElementType=kind)
        assert run_algorithm(**environment(platform_case, tiny_model)).code == 0
        scores.append((platform_case.output_dir / "frame-quality-scores.json").read_text())
    assert scores[0] == scores[1]


def test_an_output_folder_that_cannot_be_made(platform_case, speckle, tiny_model, run_algorithm):
    """A file where the folder should be: refused before anything is computed, and the file is untouched."""
    platform_case.write_sweep(speckle())
    blocked = platform_case.input_dir / "a file"
    blocked.write_text("mine")
    ended = run_algorithm(**(environment(platform_case, tiny_model) | {"OUTPUT_DIR": blocked}))
    assert_refused(ended, platform_case, "could not be written")
    assert blocked.read_text() == "mine"
    assert "model:" not in ended.stdout


def test_a_full_disk(platform_case, speckle, tiny_model, run_algorithm, monkeypatch):
    """No space when the third file is flushed: the sentence says so and the first two files are gone again."""
    platform_case.write_sweep(speckle())
    flushed = []

    def fsync(_):
        flushed.append(platform_case.written())
        if len(flushed) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    ended = run_algorithm(**environment(platform_case, tiny_model))
    assert_refused(ended, platform_case, "No space left on device")
    # The first flush was that of the probe; two results lay there when the third failed.
    assert sum(name in RESULT_FILES for name in flushed[-1]) == 2


def test_a_missing_or_damaged_model(platform_case, speckle, tiny_model, run_algorithm, tmp_path):
    """An empty mount, another schema, a flipped byte: each refused with a sentence that names the file."""
    platform_case.write_sweep(speckle())
    empty = tmp_path / "empty"
    empty.mkdir()
    ended = run_algorithm(**environment(platform_case, empty))
    assert_refused(ended, platform_case, "mount or extract a model artifact")

    other = shutil.copytree(tiny_model, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"schema_version": SCHEMA_VERSION + 1}))
    refused = f"schema_version is {SCHEMA_VERSION + 1}"
    assert_refused(run_algorithm(**environment(platform_case, other)), platform_case, refused)

    damaged = shutil.copytree(tiny_model, tmp_path / "damaged")
    content = bytearray((damaged / "tower.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "tower.safetensors").write_bytes(content)
    assert_refused(run_algorithm(**environment(platform_case, damaged)), platform_case, "tower.safetensors")


def test_a_mistake_of_ours_is_called_one(platform_case, speckle, tiny_model, run_algorithm, monkeypatch):
    """An unexpected exception: traceback in the log, one sentence on stderr that calls it a bug, nothing written."""
    platform_case.write_sweep(speckle())

    def broken(*_, **__):
        raise RuntimeError("two\nlines " + "x" * 100_000)

    monkeypatch.setattr("algorithm.pipeline.outline_best", broken)
    ended = run_algorithm(**environment(platform_case, tiny_model))
    assert ended.code == 1
    (sentence,) = ended.stderr.splitlines()
    assert "a bug in this program: RuntimeError: two lines xxx" in sentence
    assert len(sentence) < 64 * 1024
    assert "Traceback" in ended.stdout
    assert platform_case.written() == []


def test_sigterm_leaves_nothing(platform_case, speckle, tiny_model, run_algorithm, monkeypatch):
    """SIGTERM in the middle of writing: exit code 143, and the files that were already there are gone again."""
    platform_case.write_sweep(speckle())

    def interrupted(*_):
        assert len(platform_case.written()) == 4
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("algorithm.result.outputs.check_outputs", interrupted)
    ended = run_algorithm(**environment(platform_case, tiny_model))
    assert ended.code == 143
    assert "stopped by a signal" in ended.stderr
    assert platform_case.written() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_break_the_clean_up(platform_case, tiny_model, repository, number):
    """Stopped while threads inflate a sweep, and again in the clean-up: one sentence, no file, no abort."""
    stack = np.random.default_rng(0).integers(0, 256, (128, 562, 744), dtype=np.uint8)
    path = platform_case.write_sweep(stack)
    assert path.stat().st_size > 16 << 20
    program = f"""
import signal, sys, time
signal.signal({int(number)}, signal.SIG_DFL)  # whatever a shell had it do
from algorithm.frames import parallel_pixels
from algorithm.frames.frame_stream import FrameStream
parallel_pixels.LEAST_CORES = 1
close, begin = FrameStream.close, FrameStream.__init__
def closing(stream):
    print("closing", flush=True)
    time.sleep(0.2)
    close(stream)
def beginning(stream, *arguments, **settings):
    begin(stream, *arguments, **settings)
    print("started", flush=True)
FrameStream.close, FrameStream.__init__ = closing, beginning
from algorithm.__main__ import main
sys.exit(main([]))
"""
    variables = {name: str(value) for name, value in environment(platform_case, tiny_model).items()}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | variables | {"PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for said in ("started", "closing"):
        assert process.stdout.readline() == f"{said}\n"
        process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stderr.splitlines() == [
        "stopped by a signal before the result was complete; nothing of an incomplete result was kept"
    ]
    assert platform_case.written() == []


def test_the_real_process(platform_case, speckle, tiny_model, repository):
    """A good case: exit code 0, nothing on stderr, exactly the four files, the timings as a line of JSON on stdout.

    Run as on the platform: no home, a read-only working folder, a locale that is not UTF-8; a name that is not ASCII.
    """
    platform_case.write_sweep(speckle(), case="Fötus №1.mha")
    variables = {name: str(path) for name, path in environment(platform_case, tiny_model).items()}
    variables |= {"PYTHONPATH": str(repository), "HOME": "/nonexistent", "LC_ALL": "C", "PYTHONUTF8": "0"}
    variables |= {"PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "2"}
    ended = subprocess.run(
        [sys.executable, "-m", "algorithm"], env=variables, cwd="/proc", capture_output=True, timeout=600, check=False
    )
    assert ended.stderr == b""
    assert ended.returncode == 0
    assert platform_case.written() == RESULT_FILES
    lines = ended.stdout.decode("utf-8").splitlines()
    done = json.loads(lines[-1])
    assert done["event"] == "case done"
    assert done["case"] == "Fötus №1"
    assert any(line.startswith("device: ") and "(" in line for line in lines)
    assert any(line.startswith("precision: ") and "(" in line for line in lines)
    timings = done["timings"]
    assert timings["total_s"] >= timings["first_frame_s"] > timings["import_s"] > 0
    assert timings["peak_rss_bytes"] > 50e6


@pytest.mark.parametrize("package", ["algorithm", "training", "evaluation", "acouslic_cli"])
def test_an_interrupt_before_the_program_has_begun_ends_it_without_a_word(package, repository):
    """Ctrl-C while the first modules are imported: the signal itself, and no traceback."""
    code = (
        "import os, runpy, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name in ('acouslic.streams', 'acouslic.interrupts'):\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        f"runpy.run_module('{package}', run_name='__main__', alter_sys=True)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr == ""


def test_help_and_bad_arguments_do_not_import_torch(repository):
    """They answer at once; torch alone takes more than a second."""
    code = (
        "import sys; from algorithm.__main__ import main\n"
        "bad = ['predict', 'x', '--output', 'y', '--device', 'z']\n"
        "for words in (['--help'], ['predict', '--help'], ['predict'], bad):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: print('ended', end.code)\n"
        "print('loaded', sorted({'torch', 'cv2', 'numpy'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=600, check=True
    )
    assert [line for line in ended.stdout.splitlines() if line.startswith("ended")] == ["ended 0"] * 2 + ["ended 2"] * 2
    assert ended.stdout.splitlines()[-1] == "loaded []"


def test_a_bad_sweep_is_refused_before_torch_is_imported(platform_case, tiny_model, repository):
    """What the header alone shows is told without the second that importing torch takes."""
    raw_mha(sweep_path(platform_case), b"", DimSize="60 40 0")
    code = "import sys; from algorithm.__main__ import main\nprint(main([]), 'torch' in sys.modules)"
    variables = {name: str(path) for name, path in environment(platform_case, tiny_model).items()}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "1 False"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--port", "99999"], "argument --port: must be a whole number from 1 to 65535, not '99999'"),
        (["serve", "--port", "-1"], "argument --port: must be a whole number from 1 to 65535, not '-1'"),
        (["exec", "--batch-frames", "many"], "argument --batch-frames: must be a whole number from 1, not 'many'"),
        (["exec", "--batch-frames", "0"], "argument --batch-frames: must be a whole number from 1, not '0'"),
    ],
)
def test_numbers_that_cannot_be_are_refused(words, said, capsys):
    """In words that name the argument and its range."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(said)
