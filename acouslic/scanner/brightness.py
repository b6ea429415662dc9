"""Grey from the colour that scanners and video store it in."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError

_COLOURFUL_LEVELS = 40
"""Channels further apart than this are a colour; compression alone does not part them so far."""
_MOST_COLOURFUL = 0.02
"""Share of the pixels of a frame: markers and text may be coloured, Doppler is more."""


def brightness(pixels: NDArray[Any], where: str, frame_index: int) -> NDArray[np.uint8]:
    """How bright each pixel is: uint8 (rows, columns, 3), red, green, blue, to uint8 (rows, columns).

    The weights are those of ITU-R BT.601; equal channels give exactly their value. Raises AcouslicError, opened by
    `where`, for a frame that shows colours, as of Doppler.
    """
    # Whole numbers, so that grey stays what it was to the last bit.
    weights = np.array([299, 587, 114], np.uint32)
    grey = ((pixels.astype(np.uint32) @ weights + 500) // 1000).astype(np.uint8)
    colourful = np.ptp(pixels, axis=-1) > _COLOURFUL_LEVELS
    if colourful.mean() > _MOST_COLOURFUL:
        raise AcouslicError(
            f"{where}: expected grey, got colour in frame {frame_index} (counted from 0), as of Doppler; record the "
            "sweep without it"
        )
    return grey
