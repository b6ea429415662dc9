"""What a hospital does: a DICOM file in, DICOM objects out, in the image as it is."""

import json

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import JPEG2000Lossless


def as_dicom(write_ultrasound, stack, path):
    """The frames of a stack as one multi-frame ultrasound file, JPEG 2000; its dataset."""
    image = SimpleITK.ReadImage(str(stack))
    frames = SimpleITK.GetArrayFromImage(image)
    count, rows, columns = frames.shape
    write_ultrasound(path, count, Rows=rows, Columns=columns, PatientName="Mustermann^Erika")
    dataset = pydicom.dcmread(path)
    (region,) = dataset.SequenceOfUltrasoundRegions
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = columns - 1, rows - 1
    region.PhysicalDeltaX = region.PhysicalDeltaY = image.GetSpacing()[0] / 10  # cm
    dataset.PixelData = frames.tobytes()
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    dataset.save_as(path)
    path.chmod(0o644)
    return dataset


def test_predict_takes_dicom_and_gives_dicom(docker, invoke_image, mounts, release, write_ultrasound, tmp_path):
    """As any user, without network: the Segmentation is the mask of the chosen frame and refers to it, the report says
    the circumference, and the patient's name is in nothing else, nor is the file's."""
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    stack = sorted((release / "images" / "stacked_fetal_ultrasound").iterdir())[0]
    source = as_dicom(write_ultrasound, stack, incoming / "Mustermann^Erika.dcm")
    volumes = [f"{incoming}:/data:ro", f"{mounts.output}:/results", f"{mounts.model_dir}:/opt/ml/model:ro"]
    options = ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--user", "54321:54321"]
    options += [word for volume in volumes for word in ("--volume", volume)]
    ended = docker.run(invoke_image, ["predict", "/data", "--output", "/results", "--dicom"], options)
    assert (ended.exit_code, ended.stderr) == (0, "")

    (case,) = (item for item in mounts.output.iterdir() if item.is_dir())
    frame_number = json.loads((case / "fetal-abdomen-frame-number.json").read_text())
    assert frame_number >= 0, "no frame was chosen: nothing is tested"
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case / "images/fetal-abdomen-segmentation/output.mha")))
    assert mask.shape == (source.NumberOfFrames, source.Rows, source.Columns)
    segmentation = highdicom.seg.segread(case / "segmentation.dcm")
    assert np.array_equal(np.squeeze(segmentation.pixel_array) != 0, mask[frame_number] != 0)
    derived = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert derived.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert derived.ReferencedFrameNumber == frame_number + 1
    circumference = json.loads((case / "fetal-abdominal-circumference.json").read_text())
    report = highdicom.sr.srread(case / "measurement-report.dcm")
    (measured,) = report.content.get_planar_roi_measurement_groups()
    (length,) = measured.get_measurements()
    assert length.value == pytest.approx(circumference["circumference_mm"], abs=0.01)
    for path in mounts.output.rglob("*"):
        assert "Mustermann" not in path.name
        if path.is_file() and path.suffix != ".dcm":
            assert b"Mustermann" not in path.read_bytes()
    assert "Mustermann" not in ended.stdout
