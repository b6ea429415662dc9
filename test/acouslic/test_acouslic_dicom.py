"""Ultrasound in DICOM: files that pydicom writes, in every transfer syntax, and what is wrong with others."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import convert_color_space
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from acouslic.errors import AcouslicError
from acouslic.stack import open_stack, read_stack

ROWS, COLUMNS = 60, 80
TOP, LEFT, BOTTOM, RIGHT = 10, 12, 53, 71
"""The image region, its last row and column included."""
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
JPEG, JPEG_LOSSLESS, JPEG_LOSSLESS_57 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.57"
JPEG_2000_LOSSLESS, JPEG_2000 = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
JPEG_LS = "1.2.840.10008.1.2.4.80"

Encode = Callable[[np.ndarray], bytes]
ENCODERS: dict[str, Encode] = {
    JPEG: lambda frame: bytes(imagecodecs.jpeg8_encode(frame, level=95)),
    JPEG_LOSSLESS: lambda frame: bytes(imagecodecs.jpeg8_encode(frame, lossless=True, predictor=1)),
    JPEG_LOSSLESS_57: lambda frame: bytes(imagecodecs.ljpeg_encode(frame)),
    JPEG_2000_LOSSLESS: lambda frame: bytes(imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True)),
    JPEG_2000: lambda frame: bytes(imagecodecs.jpeg2k_encode(frame, codecformat="j2k", level=45)),
    JPEG_LS: lambda frame: bytes(imagecodecs.jpegls_encode(frame)),
}
LOSSY = {JPEG: 12, JPEG_2000: 12}
"""By how many grey levels a pixel may be off."""


def pictures(count: int = 5) -> np.ndarray:
    """Smooth frames with something outside the region as well: uint8 (count, ROWS, COLUMNS)."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    frames = [120 + 60 * np.sin((x + 7 * k) / 9) + 50 * np.cos(y / 7) for k in range(count)]
    return np.clip(np.array(frames), 0, 255).astype(np.uint8)


def inside(frames: np.ndarray) -> np.ndarray:
    """The frames with black outside the image region."""
    kept = np.zeros_like(frames)
    region = np.s_[..., TOP : BOTTOM + 1, LEFT : RIGHT + 1]
    kept[region] = frames[region]
    return kept


def dataset(frames: np.ndarray, syntax: str = ExplicitVRLittleEndian, number: int = 1, **changed: Any) -> Dataset:
    """An ultrasound file of grey frames (n, rows, columns) or colour ones (n, rows, columns, 3)."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.3.{number}"
    made.StudyInstanceUID, made.SeriesInstanceUID = STUDY, SERIES
    made.SeriesNumber, made.InstanceNumber, made.Modality = 1, number, "US"
    made.PatientName, made.PatientID = "Roe^Jane", "4711-SECRET"
    made.Rows, made.Columns = frames.shape[1:3]
    made.NumberOfFrames = len(frames)
    made.SamplesPerPixel = 3 if frames.ndim == 4 else 1
    made.PhotometricInterpretation = "RGB" if frames.ndim == 4 else "MONOCHROME2"
    if frames.ndim == 4:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * frames.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsAllocated - 1, 0
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = LEFT, TOP
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = RIGHT, BOTTOM
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.03, 0.025
    made.SequenceOfUltrasoundRegions = Sequence([region])
    if syntax in ENCODERS:
        made.PixelData = encapsulate([ENCODERS[syntax](frame) for frame in frames])
    else:
        made.PixelData = frames.tobytes()
    for name, value in changed.items():
        setattr(made, name, value)
    if made.BitsAllocated == 8:
        made["PixelData"].VR = "OB"
    return made


def saved(made: Dataset, path: Path) -> Path:
    """The file, written as its transfer syntax says."""
    if made.file_meta.TransferSyntaxUID == RLELossless:
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.compress(RLELossless, generate_instance_uid=False)
    pydicom.dcmwrite(path, made, enforce_file_format=True)
    return path


def refused(path: Path) -> str:
    """The one sentence with which it is refused, which never has the patient's name."""
    with pytest.raises(AcouslicError) as caught:
        read_stack(path)
    message = str(caught.value)
    assert message.isprintable()
    assert "Roe" not in message
    assert "SECRET" not in message
    return message


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless, *ENCODERS])
def test_grey_frames_of_every_transfer_syntax(tmp_path: Path, syntax: str) -> None:
    """Equal to the source inside the region, or near to it where the compression is lossy; black outside."""
    frames = pictures()

    stack = read_stack(saved(dataset(frames, syntax), tmp_path / "x.dcm"))

    difference = np.abs(stack.frames.astype(int) - inside(frames))
    assert difference.max() <= LOSSY.get(str(syntax), 0)
    assert difference[:, :TOP].max() == difference[:, :, :LEFT].max() == 0
    assert stack.header.spacing_mm == pytest.approx((0.25, 0.3))
    assert stack.header.spacing_note is None
    assert stack.header.sweeps == [range(5)]


def test_big_endian_is_read(tmp_path: Path) -> None:
    """The retired byte order of old archives."""
    made = dataset(pictures(), ExplicitVRBigEndian)
    made["PixelData"].VR = "OB"
    assert np.array_equal(read_stack(saved(made, tmp_path / "x.dcm")).frames, inside(pictures()))


@pytest.mark.parametrize(
    ("syntax", "interpretation"),
    [
        (ExplicitVRLittleEndian, "RGB"),
        (ExplicitVRLittleEndian, "YBR_FULL"),
        (RLELossless, "RGB"),
        (RLELossless, "YBR_FULL"),
        (JPEG, "YBR_FULL_422"),
        (JPEG_LOSSLESS, "RGB"),
        (JPEG_2000_LOSSLESS, "YBR_RCT"),
        (JPEG_2000, "YBR_ICT"),
    ],
)
def test_colour_is_turned_grey(tmp_path: Path, syntax: str, interpretation: str) -> None:
    """RGB and YBR of grey frames, with a colour bar outside the region, which does not count."""
    frames = pictures()
    colour = np.repeat(frames[..., None], 3, axis=-1)
    colour[:, :8, :] = (255, 40, 0)
    if interpretation == "YBR_FULL":
        colour = convert_color_space(colour, "RGB", "YBR_FULL")
    made = dataset(colour, syntax, PhotometricInterpretation=interpretation)

    stack = read_stack(saved(made, tmp_path / "x.dcm"))

    assert np.abs(stack.frames.astype(int) - inside(frames)).max() <= LOSSY.get(str(syntax), 0)
    assert any("stores its frames in colour; their brightness is used" in note for note in stack.header.notes)


def test_plane_by_plane_and_inverted(tmp_path: Path) -> None:
    """Colours in planes, and grey in which black is the highest value."""
    frames = pictures()
    planes = np.repeat(frames[:, None], 3, axis=1)
    made = dataset(np.repeat(frames[..., None], 3, axis=-1), PlanarConfiguration=1, PixelData=planes.tobytes())
    assert np.array_equal(read_stack(saved(made, tmp_path / "a.dcm")).frames, inside(frames))
    made = dataset(255 - frames, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_stack(saved(made, tmp_path / "b.dcm")).frames, inside(frames))


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    """Each stored value stands for a colour; a grey palette that turns the values round gives them back."""
    made = dataset(255 - pictures(), PhotometricInterpretation="PALETTE COLOR")
    table = (np.arange(255, -1, -1, dtype="<u2") * 257).tobytes()
    for colour in ("Red", "Green", "Blue"):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(made, f"{colour}PaletteColorLookupTableData", table)
    assert np.array_equal(read_stack(saved(made, tmp_path / "x.dcm")).frames, inside(pictures()))


@pytest.mark.parametrize(("bits", "factor", "kind"), [(16, 257, "<u2"), (8, 1, "u1"), (8, 1, "<u2")])
def test_a_palette_may_have_entries_of_eight_bits(tmp_path: Path, bits: int, factor: int, kind: str) -> None:
    """In bytes, or one in each word as some writers have it, which is no black picture."""
    made = dataset(pictures(), PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(made, f"{colour}PaletteColorLookupTableData", (np.arange(256) * factor).astype(kind).tobytes())
    assert np.array_equal(read_stack(saved(made, tmp_path / "x.dcm")).frames, inside(pictures()))


def test_doppler_is_refused(tmp_path: Path) -> None:
    """Colour inside the region, in more than a marker's pixels, is no grey image; a marker is."""
    colour = np.repeat(pictures()[..., None], 3, axis=-1)
    colour[3, 20:24, 20:24] = (0, 200, 0)
    read_stack(saved(dataset(colour), tmp_path / "x.dcm"))
    colour[3, 20:40, 20:40] = (200, 0, 0)
    assert "got colour in frame 3" in refused(saved(dataset(colour), tmp_path / "x.dcm"))


def test_files_of_a_folder_are_the_sweeps_of_a_case(tmp_path: Path) -> None:
    """In the order of their numbers, whatever their names; each with its own length; their UIDs stand in the header."""
    frames = pictures(9)
    saved(dataset(frames[:2], number=1), tmp_path / "Roe_Jane_b.dcm")
    saved(dataset(frames[2:6], RLELossless, number=2), tmp_path / "Roe_Jane_a")
    saved(dataset(frames[6:], JPEG_LOSSLESS, number=10), tmp_path / "Roe_Jane_0.dcm")

    stack = read_stack(tmp_path)

    assert np.array_equal(stack.frames, inside(frames))
    assert stack.header.sweeps == [range(2), range(2, 6), range(6, 9)]
    assert [source.frames for source in stack.header.sources] == [2, 4, 3]
    assert [source.sop_instance_uid.rpartition(".")[2] for source in stack.header.sources] == ["1", "2", "10"]
    assert {source.series_instance_uid for source in stack.header.sources} == {SERIES}
    assert "Roe" not in stack.header.label + "".join(stack.header.notes)


def test_single_frames_of_a_series_are_one_sweep(tmp_path: Path) -> None:
    """Files of one frame each, by number; another series is another sweep."""
    frames = pictures(6)
    for number in range(6):
        series = SERIES if number < 4 else f"{SERIES}.9"
        made = dataset(frames[number : number + 1], number=number + 1, SeriesInstanceUID=series)
        made.SeriesNumber = 1 if number < 4 else 2
        del made.NumberOfFrames
        saved(made, tmp_path / f"{9 - number}.dcm")

    stack = read_stack(tmp_path)

    assert np.array_equal(stack.frames, inside(frames))
    assert stack.header.sweeps == [range(4), range(4, 6)]


def test_series_without_numbers_are_not_mixed(tmp_path: Path) -> None:
    """Their frames have the same numbers: each series is a sweep all the same, the one that begins first in front."""
    frames = pictures(6)
    for number in range(6):
        series = SERIES if number < 3 else f"{SERIES}.9"
        made = dataset(frames[number : number + 1], number=9 - number, SeriesInstanceUID=series, SeriesNumber=None)
        made.InstanceNumber, made.AcquisitionDateTime = 1 + number % 3, f"2026113012{number:02}00"
        del made.NumberOfFrames
        saved(made, tmp_path / f"{number}.dcm")

    stack = read_stack(tmp_path)

    assert np.array_equal(stack.frames, inside(frames))
    assert stack.header.sweeps == [range(3), range(3, 6)]


def test_a_whole_case_in_one_file_has_the_challenges_sweeps(tmp_path: Path) -> None:
    """840 frames of one file are six sweeps of 140, which nothing in the file tells apart."""
    header = open_stack(saved(dataset(np.zeros((840, 60, 80), np.uint8)), tmp_path / "x.dcm")).header
    assert [len(sweep) for sweep in header.sweeps] == [140] * 6


def test_without_a_region_the_whole_frame_and_its_pixel_spacing_count(tmp_path: Path) -> None:
    """And where nothing states a pixel size, the challenge's is assumed, by a note without the file's name."""
    made = dataset(pictures(), PixelSpacing=[0.4, 0.5])
    del made.SequenceOfUltrasoundRegions
    stack = read_stack(saved(made, tmp_path / "Roe.dcm"))
    assert np.array_equal(stack.frames, pictures())
    assert stack.header.spacing_mm == (0.4, 0.5)
    assert any("names no image region" in note for note in stack.header.notes)
    del made.PixelSpacing
    header = open_stack(saved(made, tmp_path / "Roe.dcm")).header
    assert header.spacing_mm == (0.28, 0.28)
    assert str(header.spacing_note).startswith("DICOM 1.2.826")


def test_the_largest_region_of_tissue_counts(tmp_path: Path) -> None:
    """Not a trace over time, whose units are seconds, nor a small second view."""
    made = dataset(pictures())
    trace, small = (copy.deepcopy(made.SequenceOfUltrasoundRegions[0]) for _ in range(2))
    trace.RegionSpatialFormat, trace.PhysicalUnitsXDirection = 3, 4
    trace.RegionLocationMinX0 = trace.RegionLocationMinY0 = 0
    small.RegionLocationMaxX1, small.PhysicalDeltaX = LEFT + 5, 0.9
    made.SequenceOfUltrasoundRegions = Sequence([small, trace, made.SequenceOfUltrasoundRegions[0]])

    stack = read_stack(saved(made, tmp_path / "x.dcm"))

    assert np.array_equal(stack.frames, inside(pictures()))
    assert stack.header.spacing_mm == pytest.approx((0.25, 0.3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"Modality": "CT"}, "expected ultrasound (Modality US), got 'CT'"),
        ({"NumberOfFrames": 6}, "header announces 28,800 bytes of pixels, but 24,000 are there"),
        ({"NumberOfFrames": -1}, "holds no frames that can be read"),
        ({"NumberOfFrames": 2_000_000_000}, "holds no frames that can be read"),
        ({"Rows": 0}, "holds no frames that can be read"),
        ({"Rows": 65_535, "Columns": 65_535}, "are more than"),
        ({"SamplesPerPixel": 3}, "expected unsigned pixels of 8 bits, grey, RGB or YBR"),
        ({"BitsAllocated": 32}, "expected unsigned pixels of 8 bits"),
        ({"PixelRepresentation": 1}, "expected unsigned pixels of 8 bits"),
        ({"HighBit": 3}, "its values are not the lowest 8 bits (HighBit 3)"),
        ({"SOPInstanceUID": ""}, "expected a SOPInstanceUID of digits and dots"),
        ({"StudyInstanceUID": "1.2\x1b[31m"}, "expected a StudyInstanceUID of digits and dots"),
    ],
)
def test_headers_that_cannot_be_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """Each in a sentence."""
    assert message in refused(saved_loosely(dataset(pictures(), **changed), tmp_path / "x.dcm"))


def saved_loosely(made: Dataset, path: Path) -> Path:
    """A file of elements that pydicom would not write unasked."""
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    pydicom.dcmwrite(path, made, implicit_vr=False, little_endian=True)
    content = path.read_bytes()
    if content[128:132] != b"DICM":
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, made, enforce_file_format=True)
        path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("edge", ["MaxX1", "MinX0", "MaxY1"])
def test_a_region_outside_the_frame_is_refused(tmp_path: Path, edge: str) -> None:
    """It is damaged, and so is what it says of the pixel size."""
    made = dataset(pictures())
    setattr(made.SequenceOfUltrasoundRegions[0], f"RegionLocation{edge}", 999)
    assert "lies outside its frame" in refused(saved(made, tmp_path / "x.dcm"))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, *ENCODERS])
def test_files_that_are_cut_off_or_damaged_are_refused(tmp_path: Path, syntax: str) -> None:
    """Of each transfer syntax one cut off at several places, and one whose frames are noise."""
    path = saved(dataset(pictures(), syntax), tmp_path / "x.dcm")
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.97):
        path.write_bytes(content[: int(len(content) * share)])
        refused(path)
    if syntax == ExplicitVRLittleEndian:
        return
    noise = encapsulate([np.random.default_rng(k).bytes(900) for k in range(5)])
    made = dataset(pictures(), syntax if syntax != RLELossless else ExplicitVRLittleEndian)
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.PixelData = noise
    made["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(path, made, enforce_file_format=True)
    refused(path)


def test_a_frame_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """A small JPEG may announce a picture of gigabytes."""
    large = encapsulate([ENCODERS[JPEG](np.zeros((600, 800), np.uint8))] * 5)
    made = dataset(pictures(), JPEG, PixelData=large)
    assert "its frame 0 is 600 x 800, expected 60 x 80" in refused(saved(made, tmp_path / "x.dcm"))


def test_fewer_frames_than_announced_are_refused(tmp_path: Path) -> None:
    """Compressed ones too, where no length tells."""
    made = dataset(pictures(), JPEG, NumberOfFrames=6)
    message = refused(saved(made, tmp_path / "x.dcm"))
    assert "announces 6 frames, but only 5 are there" in message or "damaged or cut off" in message


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG, JPEG_LS, JPEG_2000])
@pytest.mark.parametrize("announced", [3, None])
@pytest.mark.parametrize("has_offsets", [True, False])
def test_more_frames_than_announced_are_refused(
    tmp_path: Path, syntax: str, announced: int | None, has_offsets: bool
) -> None:
    """A header with another number of frames, or without one, does not leave frames out without a word."""
    made = dataset(pictures(), syntax)
    if syntax == RLELossless:
        made = dataset(pictures())
        made.compress(RLELossless)
    if not has_offsets and syntax != ExplicitVRLittleEndian:
        made.PixelData = encapsulate(list(generate_frames(made.PixelData, number_of_frames=5)), has_bot=False)
    del made.NumberOfFrames
    if announced is not None:
        made.NumberOfFrames = announced
    pydicom.dcmwrite(tmp_path / "x.dcm", made, enforce_file_format=True)
    assert f"holds more than the {announced or 1} frames" in refused(tmp_path / "x.dcm")


def test_a_few_bytes_of_padding_are_no_frame(tmp_path: Path) -> None:
    """Some devices leave them."""
    made = dataset(pictures())
    made.PixelData += bytes(100)
    assert np.array_equal(read_stack(saved(made, tmp_path / "x.dcm")).frames, inside(pictures()))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"StudyInstanceUID": f"{STUDY}.7"}, "DICOM files of 2 studies"),
        ({"SOPInstanceUID": "1.2.826.0.1.3680043.8.498.3.1"}, "two copies of one DICOM file"),
    ],
)
def test_files_that_do_not_make_one_case_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """Two studies, and one file twice."""
    saved(dataset(pictures(), number=1), tmp_path / "a.dcm")
    saved(dataset(pictures(), number=2, **changed), tmp_path / "b.dcm")
    assert message in refused(tmp_path)


def test_sweeps_of_another_size_or_depth_are_refused(tmp_path: Path) -> None:
    """One stack has one frame size and one pixel size."""
    saved(dataset(pictures(), number=1), tmp_path / "a.dcm")
    other = dataset(pictures(), number=2)
    other.SequenceOfUltrasoundRegions[0].PhysicalDeltaX = 0.04
    saved(other, tmp_path / "b.dcm")
    assert "its pixel size differs" in refused(tmp_path)
    saved(dataset(np.zeros((2, 60, 90), np.uint8), number=2), tmp_path / "b.dcm")
    assert "expected frames of 60 x 80" in refused(tmp_path)
