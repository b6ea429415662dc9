"""A MetaImage that keeps each frame in a raw file of its own, as scanners' export programs and ITK write it."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.reading.metaimage import MetaImageHeader, source_header
from acouslic.reading.source import SourceHeader, one_channel


@dataclass(frozen=True)
class MetaImageList:
    """A header whose files are all there, each of the right length."""

    metaimage: MetaImageHeader

    @property
    def header(self) -> SourceHeader:
        """As `FrameSource.header`."""
        return source_header(self.metaimage)

    def frames(self) -> Generator[NDArray[Any], None, None]:
        """As `FrameSource.frames`."""
        header = self.metaimage
        shape = (header.dim_size[1], header.dim_size[0], header.channels)
        for frame_index, path in enumerate(header.frame_paths):
            pixels = np.empty(shape, header.dtype)
            try:
                with path.open("rb") as file:
                    complete = file.readinto(pixels.view(np.uint8).data) == pixels.nbytes and not file.read(1)
            except OSError as error:
                raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from error
            if not complete:
                raise AcouslicError(f"{path} was changed while it was read: copy it again, and run again")
            yield one_channel(pixels, header.path, frame_index)
