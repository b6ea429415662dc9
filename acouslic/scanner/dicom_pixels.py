"""The frames of one DICOM file, decoded one at a time and turned grey."""

import io
import os
import re
import struct
import warnings
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.scanner.brightness import brightness
from acouslic.scanner.dicom_header import TRANSFER_SYNTAXES, DicomFile, read_dataset

_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_IMPLICIT, _BIG_ENDIAN, _RLE = _UNCOMPRESSED[0], _UNCOMPRESSED[2], "1.2.840.10008.1.2.5"
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_LS_FRAME = b"\xff\xf7"
"""The marker after which rows and columns stand (ITU-T T.87)."""
_PIXEL_DATA = (0x7FE0, 0x0010)
_UNKNOWN_LENGTH = 0xFFFFFFFF
_JPEG_ENDS_WITH = b"\xff\xd9"
_NEXT_IMAGE = re.compile(rb"\xff\xd9\0?\xff[\xd8\x4f]\xff")
"""Where an image of any kind of JPEG ends and a further one begins."""


def grey_frames(file: DicomFile, first_frame: int) -> Generator[NDArray[Any], None, None]:
    """Each frame of a file, (rows, columns), uint8 or uint16, the caller's own; `first_frame` counts in the stack.

    Raises AcouslicError where the pixels are damaged, cut off, fewer or more than announced, or show colours.
    """
    try:
        with file.path.open("rb") as stream, file.path.open("rb") as beside:
            _to_pixels(file, stream)
            encoded = None if file.transfer_syntax in _UNCOMPRESSED else _encoded_frames(file, beside)
            decoded = _decoder_frames(file, stream)
            for number in range(file.frames):
                if encoded is not None:
                    _check_encoded(file, number, next(encoded, b""))
                    if number == file.frames - 1 and next(encoded, b""):
                        raise AcouslicError(_more_than_announced(file))
                with warnings.catch_warnings():
                    # Of padding and the like, with values that may not be passed on.
                    warnings.simplefilter("ignore")
                    pixels, properties = next(decoded)
                if pixels.shape[:2] != (file.rows, file.columns):
                    raise AcouslicError(f"{file.label}: its frame {number} is of another size than its header says")
                yield _grey(pixels, str(properties["photometric_interpretation"]), file, first_frame + number)
    except (AcouslicError, MemoryError):
        raise
    except OSError as error:
        raise AcouslicError(f"{file.label} could not be read: {error.strerror or error}") from None
    except Exception as error:
        # Each of the decoders has exceptions of its own.
        raise AcouslicError(
            f"{file.label}: its pixels ({TRANSFER_SYNTAXES[file.transfer_syntax]}) are damaged or cut off "
            f"({type(error).__name__})"
        ) from None


def _to_pixels(file: DicomFile, stream: BinaryIO) -> None:
    """Move to the first byte of the pixels. Raises AcouslicError where there are fewer than the header announces."""
    read_dataset(stream)
    syntax = file.transfer_syntax
    order = ">" if syntax == _BIG_ENDIAN else "<"
    form = f"{order}HHI" if syntax == _IMPLICIT else f"{order}HH4xI"
    start = stream.read(struct.calcsize(form))
    if len(start) < struct.calcsize(form):
        raise AcouslicError(f"{file.label} is cut off before its pixels")
    *tag, length = struct.unpack(form, start)
    if tuple(tag) != _PIXEL_DATA:
        raise AcouslicError(f"{file.label} holds no pixels")
    if syntax in _UNCOMPRESSED:
        expected = file.frames * file.rows * file.columns * file.pixel_bytes
        if str(file.dataset.PhotometricInterpretation) == "YBR_FULL_422":
            expected = expected // 3 * 2
        there = os.fstat(stream.fileno()).st_size - stream.tell()
        if length == _UNKNOWN_LENGTH or min(length, there) < expected:
            raise AcouslicError(
                f"{file.label}: the header announces {expected:,} bytes of pixels, but {min(length, there):,} are "
                "there; the file is truncated or its header is wrong"
            )
        # Less than a frame more is padding, which some devices leave.
        if length - expected >= expected // file.frames:
            raise AcouslicError(_more_than_announced(file))
    elif length != _UNKNOWN_LENGTH:
        raise AcouslicError(f"{file.label}: its compressed pixels are not in frames of their own")


def _decoder_frames(file: DicomFile, stream: BinaryIO) -> Iterator[tuple[NDArray[Any], dict[str, Any]]]:
    """pydicom's frames, decompressed, in the file's own colour space."""
    from pydicom.pixels import get_decoder

    dataset, syntax = file.dataset, file.dataset.file_meta.TransferSyntaxUID
    return get_decoder(syntax).iter_array(
        stream,
        indices=range(file.frames),
        raw=True,
        transfer_syntax_uid=syntax,
        rows=file.rows,
        columns=file.columns,
        samples_per_pixel=file.samples,
        number_of_frames=file.frames,
        bits_allocated=int(dataset.BitsAllocated),
        bits_stored=int(dataset.get("BitsStored") or dataset.BitsAllocated),
        pixel_representation=0,
        photometric_interpretation=str(dataset.PhotometricInterpretation),
        planar_configuration=int(dataset.get("PlanarConfiguration") or 0),
        pixel_keyword="PixelData",
        pixel_vr="OW" if file.transfer_syntax == _IMPLICIT or dataset.BitsAllocated == 16 else "OB",
    )


def _encoded_frames(file: DicomFile, stream: BinaryIO) -> Iterator[bytes]:
    """The compressed bytes of each frame, from a handle of their own."""
    from pydicom.encaps import generate_frames, parse_basic_offsets, parse_fragments

    _to_pixels(file, stream)
    if file.transfer_syntax == _RLE:
        # A frame is one fragment each (DICOM PS3.5, A.4.2), but a reader that expects one frame joins them all.
        parse_basic_offsets(stream)
        if parse_fragments(stream)[0] > file.frames:
            raise AcouslicError(_more_than_announced(file))
        stream.seek(0)
        _to_pixels(file, stream)
    return generate_frames(stream, number_of_frames=file.frames)


def _more_than_announced(file: DicomFile) -> str:
    return (
        f"{file.label} holds more than the {file.frames} frames that its header announces; its header is wrong: export "
        "it again"
    )


def _check_encoded(file: DicomFile, number: int, encoded: bytes) -> None:
    """Refuse, before it is decoded, an image of another size than the header's, or one that is cut off."""
    if not encoded:
        raise AcouslicError(f"{file.label}: the header announces {file.frames} frames, but only {number} are there")
    if file.transfer_syntax == _RLE:
        return
    if file.transfer_syntax in _JPEG_2000:
        from openjpeg.utils import get_parameters

        found = get_parameters(io.BytesIO(encoded))
        size = (found["rows"], found["columns"])
    elif file.transfer_syntax in _JPEG_LS:
        marker = encoded.find(_JPEG_LS_FRAME)
        size = struct.unpack(">HH", encoded[marker + 5 : marker + 9])
    else:
        from tifffile.tifffile import jpeg_shape

        size = jpeg_shape(encoded)[1:3]
    if size != (file.rows, file.columns):
        raise AcouslicError(
            f"{file.label}: its frame {number} is {size[0]} x {size[1]}, expected {file.rows} x {file.columns}"
        )
    if not encoded.rstrip(b"\0").endswith(_JPEG_ENDS_WITH):
        raise AcouslicError(f"{file.label}: its frame {number} is cut off")
    if _NEXT_IMAGE.search(encoded):
        raise AcouslicError(_more_than_announced(file))


def _grey(pixels: NDArray[Any], interpretation: str, file: DicomFile, frame_index: int) -> NDArray[Any]:
    if interpretation == "MONOCHROME1":
        bits = int(file.dataset.get("BitsStored") or file.dataset.BitsAllocated)
        return ((1 << bits) - 1 - pixels).astype(pixels.dtype)
    if interpretation == "MONOCHROME2":
        return np.array(pixels)
    if interpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        colours = apply_color_lut(pixels, file.dataset)
        # Some writers put entries of 8 bits into words (DICOM PS3.3 C.7.6.3.1.5): the descriptor says how many count.
        bits = int(file.dataset.RedPaletteColorLookupTableDescriptor[2])
        pixels = (colours >> (bits - 8)).astype(np.uint8) if colours.dtype == np.uint16 else colours
    elif interpretation.startswith("YBR_FULL"):
        from pydicom.pixels import convert_color_space

        grey = pixels[..., 0].copy()
        # The brightness is there already; what is left is whether there is colour.
        brightness(_inside(convert_color_space(pixels, interpretation, "RGB"), file), file.label, frame_index)
        return grey
    grey = np.zeros(pixels.shape[:2], np.uint8)
    _inside(grey, file)[...] = brightness(_inside(pixels, file), file.label, frame_index)
    return grey


def _inside(values: NDArray[Any], file: DicomFile) -> NDArray[Any]:
    """The part of a frame that its image region covers."""
    return values if file.region is None else values[file.region]
