"""A result as DICOM objects beside its source: a Segmentation of the chosen frame, and a structured report.

Both refer to the source's UIDs, belong to its study and patient, and say that they are research. They are made by
highdicom, which is imported when the first one is written.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from acouslic.ellipse import Ellipse
from acouslic.errors import AcouslicError
from acouslic.reading.source import SourceFile
from acouslic.stack import StackHeader
from acouslic.write import write_bytes
from algorithm.result.outputs import DICOM_REPORT_FILE, DICOM_SEGMENTATION_FILE, CaseResult
from algorithm.result.record import Maker

if TYPE_CHECKING:
    from pydicom import Dataset

SERIES_DESCRIPTION = "RESEARCH fetal abdomen, not for diagnosis"
NOT_SUITABLE = "NOT suitable"
_CONTENT_LABEL = "RESEARCH"
_MANUFACTURER = "acouslic-fetal-abdomen (research software)"
_SERIES_NUMBERS = (9001, 9002)
_SINGLE_FRAME_ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
_SWITCHING = "ISO 2022"
"""What the names of character sets begin with that others may follow."""
_NOT_OF_ONE_FRAME = (
    "PixelData", "NumberOfFrames", "FrameTime", "FrameTimeVector", "FrameIncrementPointer", "FrameOfReferenceUID",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelSpacing", "PixelAspectRatio",
)  # fmt: skip
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""What DICOM wants in every file, if only empty because nobody knows (type 2). Many files lack some of it."""


@dataclass(frozen=True)
class _SourceFrame:
    """The frame of a DICOM file that a result is about."""

    dataset: "Dataset"
    """Of the file, without its pixels."""
    frame_number: int
    """In the file, counted from 1."""
    is_one_of_many: bool
    """Whether the file may hold several frames."""


def check_source(header: StackHeader) -> None:
    """Raises AcouslicError where a stack did not come from DICOM: then there is no patient, study or UID to refer to,
    and invented ones would lead nowhere."""
    if not header.sources:
        raise AcouslicError(
            f"{header.path.name} is no DICOM, so that no DICOM result can refer to it: leave out --dicom"
        )


def write_dicom(result: CaseResult, case_dir: Path, maker: Maker) -> None:
    """Write `segmentation.dcm` and `measurement-report.dcm` into `case_dir`.

    Without a mask there is no Segmentation, and without an ellipse no report. Raises AcouslicError where the stack did
    not come from DICOM, the source lacks what DICOM requires, or a file cannot be written. No message holds a value of
    the source: some are the patient's.
    """
    check_source(result.header)
    if result.frame_index is None:
        return
    with _without_values_of(result.header):
        source = _source_frame(result.header, result.frame_index)
        if result.mask.any():
            _write(case_dir / DICOM_SEGMENTATION_FILE, _segmentation(result, source, maker))
        if result.ellipse is not None and result.circumference_mm is not None:
            _write(
                case_dir / DICOM_REPORT_FILE, _report(result, result.ellipse, result.circumference_mm, source, maker)
            )


def _source_frame(header: StackHeader, frame_index: int) -> _SourceFrame:
    import pydicom

    first = 0
    for source in header.sources:
        if frame_index < first + source.frames:
            dataset = pydicom.dcmread(source.path, stop_before_pixels=True)
            if dataset.SOPInstanceUID != source.sop_instance_uid:
                raise AcouslicError(f"{_name(source)} was changed while it was analysed: analyse it again")
            for keyword in _MAY_BE_EMPTY:
                if keyword not in dataset:
                    setattr(dataset, keyword, None)
            _spell_in_utf_8(dataset)
            return _SourceFrame(dataset, frame_index - first + 1, "NumberOfFrames" in dataset)
        first += source.frames
    raise AssertionError(f"frame {frame_index} of {first}")


def _spell_in_utf_8(dataset: "Dataset") -> None:
    """Texts that switch between character sets, as in Japan and Korea: highdicom does not know all of these sets, nor
    that the first may be empty (DICOM PS3.3 C.12.1.1.2). Any other set stays."""
    named = dataset.get("SpecificCharacterSet") or ""
    if not isinstance(named, str) or named.startswith(_SWITCHING):
        dataset.decode()
        dataset.SpecificCharacterSet = "ISO_IR 192"


def _segmentation(result: CaseResult, source: _SourceFrame, maker: Maker) -> "Dataset":
    """A binary Segmentation of one frame, aligned with the source's pixels."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Fetal abdomen (research)",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.Abdomen,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=_algorithm(maker),
    )
    segmentation = hd.seg.Segmentation(
        source_images=[_as_single_frame(source)],
        pixel_array=result.mask.astype(np.uint8)[np.newaxis],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        content_label=_CONTENT_LABEL,
        content_description=SERIES_DESCRIPTION,
        **_only_of_its_series(_SERIES_NUMBERS[0], result, maker),
    )
    # Without a frame of reference an image has to say how it lies, if only that nobody knows.
    segmentation.PatientOrientation = source.dataset.get("PatientOrientation") or None
    _refer_to_the_frame(segmentation, source)
    return segmentation


def _report(
    result: CaseResult, ellipse: Ellipse, circumference_mm: float, source: _SourceFrame, maker: Maker
) -> "Dataset":
    """A measurement report (TID 1500): the ellipse on the frame, its circumference, and what qualifies it."""
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept
    from pydicom.sr.codedict import codes

    algorithm = hd.sr.AlgorithmIdentification(name=_algorithm_name(maker), version=maker.version)
    region = hd.sr.ImageRegion(
        graphic_type=hd.sr.GraphicTypeValues.ELLIPSE,
        graphic_data=_graphic_data(ellipse),
        source_image=hd.sr.SourceImageForRegion(
            referenced_sop_class_uid=source.dataset.SOPClassUID,
            referenced_sop_instance_uid=source.dataset.SOPInstanceUID,
            referenced_frame_numbers=[source.frame_number] if source.is_one_of_many else None,
        ),
    )
    measured = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier="Fetal abdomen (research)"),
        referenced_region=region,
        finding_type=codes.SCT.Abdomen,
        algorithm_id=algorithm,
        measurements=[
            hd.sr.Measurement(
                name=CodedConcept("11979-2", "LN", "Abdominal Circumference"),
                value=round(circumference_mm, 2),
                unit=codes.UCUM.Millimeter,
                algorithm_id=algorithm,
            )
        ],
    )
    if comment := _comment(result):
        # TID 1410 may be extended.
        said = hd.sr.TextContentItem(codes.DCM.Comment, comment, hd.sr.RelationshipTypeValues.CONTAINS)
        measured[0].ContentSequence.append(said)
    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(), name=_algorithm_name(maker), manufacturer_name=_MANUFACTURER
        ),
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.SCT.UltrasoundScanObstetric,
        imaging_measurements=[measured],
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.ComprehensiveSR(
        evidence=[source.dataset],
        content=content,
        is_complete=True,
        is_final=False,
        is_verified=False,
        **_only_of_its_series(_SERIES_NUMBERS[1], result, maker),
    )


def _comment(result: CaseResult) -> str:
    """What stands beside the number on a page: whether to rely on it, and the notes."""
    warning = [] if result.suitable else [f"{NOT_SUITABLE}: do not rely on this measurement"]
    return "; ".join([*warning, *result.notes])


def _as_single_frame(source: _SourceFrame) -> "Dataset":
    """The source as if the frame were all of it: highdicom segments an image without a frame of reference only where
    it has one frame. `_refer_to_the_frame` says afterwards which one it is. The pixels' size stays with the source: a
    Segmentation would have to state a slice's thickness beside it, and there is none."""
    frame = copy.deepcopy(source.dataset)
    for keyword in _NOT_OF_ONE_FRAME:
        if keyword in frame:
            delattr(frame, keyword)
    frame.SOPClassUID = _SINGLE_FRAME_ULTRASOUND
    return frame


def _refer_to_the_frame(segmentation: "Dataset", source: _SourceFrame) -> None:
    """Every reference to the source gets its real class, and those to the frame its number."""
    from pydicom import Dataset

    for element in list(segmentation.iterall()):
        if element.VR != "SQ":
            continue
        for number, item in enumerate(element.value):
            if item.get("ReferencedSOPInstanceUID") != source.dataset.SOPInstanceUID:
                continue
            # One item may stand in several sequences.
            reference = Dataset()
            reference.update(item)
            reference.ReferencedSOPClassUID = source.dataset.SOPClassUID
            if element.keyword == "SourceImageSequence" and source.is_one_of_many:
                reference.ReferencedFrameNumber = source.frame_number
            element.value[number] = reference


def _graphic_data(ellipse: Ellipse) -> np.ndarray:
    """The ends of the longer axis, then those of the shorter one, (4, 2): x and y from the corner of the first pixel,
    where DICOM has its zero; ours is that pixel's centre."""
    (first, second), angle = ellipse.semi_axes_px, np.deg2rad(ellipse.angle_degrees)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    longer, shorter = sorted(((first, along), (second, across)), key=lambda axis: -axis[0])
    centre = np.array(ellipse.centre_px) + 0.5
    return np.array([centre + sign * length * way for length, way in (longer, shorter) for sign in (-1, 1)])


def _algorithm(maker: Maker) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.AlgorithmIdentificationSequence(
        name=_algorithm_name(maker), version=maker.version, family=codes.DCM.ArtificialIntelligence
    )


def _algorithm_name(maker: Maker) -> str:
    return f"acouslic-fetal-abdomen, model {maker.model}"[:64]


def _only_of_its_series(series_number: int, result: CaseResult, maker: Maker) -> dict[str, Any]:
    """What makes an object the one instance of a new series, and what made it."""
    import highdicom as hd

    return {
        "series_instance_uid": hd.UID(),
        "series_number": series_number,
        "series_description": SERIES_DESCRIPTION + ("" if result.suitable else f", {NOT_SUITABLE}"),
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": _MANUFACTURER,
        "manufacturer_model_name": _algorithm_name(maker),
        "software_versions": maker.version,
        "device_serial_number": maker.model_sha256[:16],
    }


def _write(path: Path, dataset: "Dataset") -> None:
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    write_bytes(path, content.getvalue())


def _name(source: SourceFile) -> str:
    """What messages call a file: its own name may be the patient's."""
    return f"DICOM file {source.sop_instance_uid}"


@contextlib.contextmanager
def _without_values_of(header: StackHeader) -> Iterator[None]:
    """Warnings, errors and logs of pydicom and highdicom may quote values of the source: none of them goes further."""
    name = _name(header.sources[0])
    for library in ("pydicom", "highdicom"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except AttributeError as error:
        missing = error.name or "something"
        raise AcouslicError(f"{name} lacks {missing}, which a DICOM result needs: leave out --dicom") from None
    except (TypeError, ValueError, KeyError, OSError) as error:
        raise AcouslicError(
            f"no DICOM result can be made for {name} ({type(error).__name__}): its header has values that DICOM does "
            "not allow; leave out --dicom"
        ) from None
