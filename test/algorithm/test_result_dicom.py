"""`--dicom`: a Segmentation and a structured report that highdicom reads and that refer to their source."""

import contextlib
import dataclasses
import sys

import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import Code, codes
from pydicom.uid import UltrasoundImageStorage, UltrasoundMultiFrameImageStorage

from acouslic.ellipse import Ellipse, circumference_mm, draw_ellipse
from acouslic.errors import AcouslicError
from acouslic.reading.source import SourceFile
from acouslic.stack import StackHeader
from algorithm.model.manifest import Thresholds
from algorithm.result.dicom_objects import NOT_SUITABLE, SERIES_DESCRIPTION, check_source, write_dicom
from algorithm.result.outputs import CaseResult, remove_results
from algorithm.result.record import Maker

ROWS, COLUMNS = 40, 60
ELLIPSE = Ellipse((30.0, 20.0), (8.0, 12.0), 110.0)
MAKER = Maker("0.1.0", "demo", "ab" * 32, {})


def result_in(folder, sources, frame_index):
    """A result whose frame lies in one of these files."""
    frames = sum(source.frames for source in sources)
    header = StackHeader(
        folder, frames, ROWS, COLUMNS, "uint8", spacing_mm=(0.28, 0.28), spacing_note=None, sources=tuple(sources)
    )
    nothing = np.zeros(frames)
    return CaseResult(
        case="x",
        header=header,
        frame_index=frame_index,
        suitable=True,
        mask=draw_ellipse(ELLIPSE, ROWS, COLUMNS),
        ellipse=ELLIPSE,
        circumference_mm=circumference_mm(ELLIPSE, (0.28, 0.28)),
        interval_mm=None,
        presence_probability=nothing,
        presence_alone_probability=nothing,
        optimality_probability=None,
        refined=nothing > 0,
        thresholds=Thresholds(),
        notes=(),
    )


def test_the_segmentation_is_read_and_refers_to_the_frame(tmp_path, write_ultrasound):
    """Two files of 5 and 7 frames, frame 8 of the stack: the mask to the pixel, frame 4 of the second file, its study
    and patient, and in words that it is research."""
    import highdicom

    sources = [write_ultrasound(tmp_path / "a.dcm", 5), write_ultrasound(tmp_path / "b.dcm", 7)]
    result = result_in(tmp_path, sources, 8)
    write_dicom(result, tmp_path, MAKER)
    segmentation = highdicom.seg.segread(tmp_path / "segmentation.dcm")
    assert np.array_equal(np.squeeze(segmentation.pixel_array) != 0, result.mask)
    source_image = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert source_image.ReferencedSOPInstanceUID == sources[1].sop_instance_uid
    assert source_image.ReferencedSOPClassUID == UltrasoundMultiFrameImageStorage
    assert source_image.ReferencedFrameNumber == 4
    (series,) = segmentation.ReferencedSeriesSequence
    assert series.ReferencedInstanceSequence[0].ReferencedSOPClassUID == UltrasoundMultiFrameImageStorage
    assert "ReferencedFrameNumber" not in series.ReferencedInstanceSequence[0]
    assert (segmentation.StudyInstanceUID, segmentation.PatientID) == ("1.2.3.4", "12345")
    assert str(segmentation.PatientName) == "Doe^Jane"
    assert segmentation.SeriesInstanceUID != "1.2.3.4.5"
    assert segmentation.SeriesDescription == SERIES_DESCRIPTION
    assert "RESEARCH" in SERIES_DESCRIPTION
    assert segmentation.ContentLabel == "RESEARCH"
    assert segmentation.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"


def test_the_report_is_read_and_measures_the_ellipse(tmp_path, write_ultrasound):
    """The circumference in mm under its LOINC code, the ellipse by the ends of its longer and shorter axis, whose zero
    is the corner of the first pixel; an obstetric scan, preliminary and not verified."""
    import highdicom

    source = write_ultrasound(tmp_path / "a.dcm", 5)
    result = result_in(tmp_path, [source], 2)
    write_dicom(result, tmp_path, MAKER)
    report = highdicom.sr.srread(tmp_path / "measurement-report.dcm")
    (group,) = report.content.get_planar_roi_measurement_groups()
    (measurement,) = group.get_measurements()
    assert measurement.name.value == "11979-2"
    assert measurement.unit.value == "mm"
    assert measurement.value == pytest.approx(result.circumference_mm, abs=0.01)
    ends = np.asarray(group.roi.value)
    longer, shorter = np.linalg.norm(ends[1] - ends[0]), np.linalg.norm(ends[3] - ends[2])
    assert (longer, shorter) == (pytest.approx(24, abs=1e-4), pytest.approx(16, abs=1e-4))
    assert ends.mean(0) == pytest.approx((30.5, 20.5), abs=1e-4)
    direction = np.degrees(np.arctan2(*(ends[1] - ends[0])[::-1])) % 180
    assert direction == pytest.approx(20.0, abs=1e-3)
    (image,) = group.roi.ContentSequence
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.sop_instance_uid
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == 3
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert (report.StudyInstanceUID, str(report.PatientName)) == ("1.2.3.4", "Doe^Jane")
    assert report.SeriesDescription == SERIES_DESCRIPTION
    (procedure,) = [
        item.ConceptCodeSequence[0]
        for item in all_items(report)
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Procedure reported"
    ]
    assert Code(procedure.CodeValue, "SCT", procedure.CodeMeaning) == codes.SCT.UltrasoundScanObstetric


@pytest.mark.parametrize("suitable", [True, False])
def test_what_qualifies_the_number_stands_beside_it(suitable, tmp_path, write_ultrasound):
    """The notes are the comment of the measurement; of a case that is not suitable the comment and both series say
    so, as the page does."""
    source = write_ultrasound(tmp_path / "a.dcm", 5)
    result = result_in(tmp_path, [source], 2)
    write_dicom(dataclasses.replace(result, suitable=suitable, notes=("0.28 mm is assumed",)), tmp_path, MAKER)
    report, segmentation = (
        pydicom.dcmread(tmp_path / f"{name}.dcm") for name in ("measurement-report", "segmentation")
    )
    comments = [
        item.TextValue for item in all_items(report) if item.ConceptNameCodeSequence[0].CodeMeaning == "Comment"
    ]
    warning = "" if suitable else f"{NOT_SUITABLE}: do not rely on this measurement; "
    assert comments == [f"{warning}0.28 mm is assumed"]
    description = SERIES_DESCRIPTION + ("" if suitable else f", {NOT_SUITABLE}")
    assert (report.SeriesDescription, segmentation.SeriesDescription) == (description, description)


def all_items(item):
    """The content items beneath one."""
    for child in item.get("ContentSequence", ()):
        yield child
        yield from all_items(child)


def test_a_file_of_one_frame_is_referred_to_without_a_number(tmp_path, write_ultrasound):
    """Where every frame is a file of its own, the file is the reference."""
    import highdicom

    sources = [write_ultrasound(tmp_path / f"{number}.dcm", None) for number in range(3)]
    write_dicom(result_in(tmp_path, sources, 1), tmp_path, MAKER)
    segmentation = highdicom.seg.segread(tmp_path / "segmentation.dcm")
    source_image = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert source_image.ReferencedSOPInstanceUID == sources[1].sop_instance_uid
    assert source_image.ReferencedSOPClassUID == UltrasoundImageStorage
    assert "ReferencedFrameNumber" not in source_image


def test_a_source_that_lacks_what_may_be_empty(tmp_path, write_ultrasound):
    """Neither patient nor study is described: the results have the same attributes, empty, as DICOM wants them."""
    import highdicom

    unknown = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
    source = write_ultrasound(tmp_path / "a.dcm", 5, **dict.fromkeys(unknown), AccessionNumber=None)
    write_dicom(result_in(tmp_path, [source], 2), tmp_path, MAKER)
    for made in (
        highdicom.seg.segread(tmp_path / "segmentation.dcm"),
        highdicom.sr.srread(tmp_path / "measurement-report.dcm"),
    ):
        assert not made.PatientID
        assert not made.StudyDate
        assert made.StudyInstanceUID == "1.2.3.4"


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Änne"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("ISO 2022 IR 100", "Müller"),
    ],
)
def test_names_in_any_character_set_are_handed_on(character_set, name, tmp_path, write_ultrasound):
    """One set, as in Europe, and several that texts switch between, as in Japan and Korea."""
    source = write_ultrasound(tmp_path / "a.dcm", 5, SpecificCharacterSet=character_set, PatientName=name)
    write_dicom(result_in(tmp_path, [source], 2), tmp_path, MAKER)
    for made in ("segmentation.dcm", "measurement-report.dcm"):
        assert str(pydicom.dcmread(tmp_path / made).PatientName) == name


def test_what_was_not_found_is_not_written(tmp_path, write_ultrasound):
    """No frame: neither file; a mask without an ellipse: the Segmentation alone. A new run removes both."""
    result = result_in(tmp_path, [write_ultrasound(tmp_path / "a.dcm", 5)], 2)
    write_dicom(dataclasses.replace(result, frame_index=None, mask=result.mask & False), tmp_path, MAKER)
    assert [path.name for path in tmp_path.iterdir()] == ["a.dcm"]
    write_dicom(dataclasses.replace(result, ellipse=None, circumference_mm=None), tmp_path, MAKER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.dcm", "segmentation.dcm"]
    write_dicom(result, tmp_path, MAKER)
    remove_results(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.dcm"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"StudyInstanceUID": None}, "lacks StudyInstanceUID"),
        ({"PatientSex": "Doe"}, "values that DICOM does not allow"),
        ({"StudyDate": "Doe^Jane"}, "values that DICOM does not allow"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*value.*:UserWarning")
def test_a_source_that_does_not_do_is_refused_without_its_values(values, reason, tmp_path, capfd, write_ultrasound):
    """What is missing is named; what is wrong is not quoted, since it may be the patient's."""
    source = SourceFile(tmp_path / "a.dcm", 5, "", "", "", "")
    with contextlib.suppress(AttributeError):
        source = write_ultrasound(tmp_path / "a.dcm", 5, **values)
    uid = pydicom.dcmread(tmp_path / "a.dcm").SOPInstanceUID
    result = result_in(tmp_path, [dataclasses.replace(source, sop_instance_uid=uid)], 2)
    with pytest.raises(AcouslicError, match=reason) as refused:
        write_dicom(result, tmp_path, MAKER)
    assert "Doe" not in str(refused.value)
    captured = capfd.readouterr()
    assert "Doe" not in captured.out + captured.err
    assert not list(tmp_path.glob("*report*"))


def test_a_source_that_changed_meanwhile_is_refused(tmp_path, write_ultrasound):
    """Another file of that name is another image."""
    result = result_in(tmp_path, [write_ultrasound(tmp_path / "a.dcm", 5)], 2)
    write_ultrasound(tmp_path / "a.dcm", 5)
    with pytest.raises(AcouslicError, match="was changed while it was analysed"):
        write_dicom(result, tmp_path, MAKER)


def test_predict_from_dicom_to_dicom(tiny_model, run_algorithm, tmp_path, write_ultrasound):
    """Two sweeps of a study, in files that are called after the patient: both results are written and refer to the
    chosen frame's file; the name is in them alone, in no other file, path or message."""
    import highdicom

    folder = tmp_path / "study"
    folder.mkdir()
    sources = [write_ultrasound(folder / f"Doe_{number}.dcm", 12, InstanceNumber=number) for number in (1, 2)]
    options = ["--output", tmp_path / "out", "--model", tiny_model, "--device", "cpu", "--dicom"]
    ended = run_algorithm("predict", folder, *options)
    assert (ended.code, ended.stderr) == (0, "")
    (report,) = (tmp_path / "out").glob("*/report.html")
    frame = int((report.parent / "fetal-abdomen-frame-number.json").read_text())
    segmentation = highdicom.seg.segread(report.parent / "segmentation.dcm")
    (source_image,) = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence
    assert source_image.ReferencedSOPInstanceUID == sources[frame // 12].sop_instance_uid
    assert source_image.ReferencedFrameNumber == frame % 12 + 1
    assert "Doe" not in ended.stdout
    assert "attributes" not in ended.stdout, "the libraries' own log"
    for path in (tmp_path / "out").rglob("*"):
        assert "Doe" not in path.name
        if path.is_file() and path.suffix not in (".dcm", ".png", ".mha"):
            content = path.read_text()
            assert "Doe" not in content.replace(str(folder), "") or path.name == "case.json"
    assert str(segmentation.PatientName) == "Doe^Jane"


def test_what_is_no_dicom_gets_no_dicom(platform_case, speckle, tiny_model, run_algorithm, tmp_path):
    """`predict --dicom` on a `.mha`: refused in a sentence before it is analysed, and nothing stays of the case."""
    header = StackHeader(tmp_path / "x.mha", 5, ROWS, COLUMNS, "uint8", spacing_mm=(0.28, 0.28), spacing_note=None)
    with pytest.raises(AcouslicError, match="no DICOM result can refer to it: leave out --dicom"):
        check_source(header)
    path = platform_case.write_sweep(speckle())
    output = tmp_path / "out"
    ended = run_algorithm("predict", path, "--output", output, "--model", tiny_model, "--device", "cpu", "--dicom")
    assert ended.code == 1
    assert "f3a.mha is no DICOM" in ended.stderr
    assert sorted(path.name for path in output.iterdir()) == ["index.html", "results.csv"]


def test_highdicom_is_loaded_only_where_it_is_asked_for(repository):
    """Importing everything that `predict` imports leaves pydicom and highdicom out: they take a second."""
    import subprocess

    code = "import algorithm.predict, sys; print({'pydicom', 'highdicom'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
