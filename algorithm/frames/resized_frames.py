"""All frames of a case as small square images on the device, filled chunk by chunk while the first are scored."""

import functools
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acouslic.stack import CHUNK_FRAMES
from algorithm.frames.frame_source import FrameSource
from algorithm.frames.preprocess import resize_frames
from algorithm.model.networks import PreprocessingConfig

_LOOK_EVERY = 4
"""Frames for `ResizedFrames.brightest`: neighbours light up the same pixels."""


class ResizedFrames:
    """uint8 (F, S, S) on `device`: 42 MB for 840 frames of 224 x 224, kept so that no frame is resized twice."""

    def __init__(self, stream: FrameSource, image_size: int, config: PreprocessingConfig, device: torch.device) -> None:
        header = stream.header
        self.frames = torch.empty((header.frames, image_size, image_size), dtype=torch.uint8, device=device)
        self.preprocess_s = 0.0
        """Seconds the host spent on uploading and resizing."""
        self.waited_s = 0.0
        """Seconds it waited for decoding."""
        self.brightest = np.zeros((header.rows, header.columns), np.uint8)
        """Each pixel's highest value over every `_LOOK_EVERY`-th frame that has been filled in."""
        self._chunks = stream.chunks()
        self._config = config
        self._filled = 0
        self._pending: tuple[range, NDArray[np.uint8]] | None = None
        self._upload = _PinnedUpload(header.rows, header.columns, device) if device.type == "cuda" else None

    def fill(self, stop: int) -> None:
        """Make sure that the frames below `stop` are there. Raises AcouslicError as `FrameSource.chunks`.

        On a GPU they are there for work that is queued after this call; the host does not wait for that. Where its
        memory runs out, it may be called again.
        """
        while self._filled < stop:
            start = time.monotonic()
            if self._pending is None:
                self._pending = next(self._chunks)
            indices, chunk = self._pending
            decoded = time.monotonic()
            self.waited_s += decoded - start
            for frame in chunk[-indices.start % _LOOK_EVERY :: _LOOK_EVERY]:
                np.maximum(self.brightest, frame, out=self.brightest)
            destination = self.frames[indices.start : indices.stop]
            if self._upload is None:
                destination.copy_(resize_frames(torch.from_numpy(chunk), destination.shape[-1], self._config))
            else:
                self._upload.resize_into(destination, chunk, self._config)
            self._filled, self._pending = indices.stop, None
            self.preprocess_s += time.monotonic() - decoded

    def finish(self) -> None:
        """Fill all frames and read the stack to its end, where it shows whether the file is whole."""
        self.fill(len(self.frames))
        for _ in self._chunks:
            raise AssertionError("a stack has no more frames than its header says")

    def blank(self) -> NDArray[np.bool_]:
        """(F,): frames without a single pixel above zero, as in the padding of short sweeps."""
        self.finish()
        return np.asarray(self.frames.flatten(1).amax(1).eq(0).cpu().numpy())


@functools.cache
def _upload_stream(device: torch.device) -> torch.cuda.Stream:
    """One for the whole process, since torch keeps freed memory apart by stream; its small kernels go before the
    network's, or the next copy, queued behind them, would wait for those."""
    return torch.cuda.Stream(device, priority=-1)


class _PinnedUpload:
    """Uploads and resizes on a stream of its own, so that the host waits for copies but never for the network.

    Two pinned buffers of one chunk each: while one is being copied to the GPU, the host fills the other.
    """

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        shape = (CHUNK_FRAMES, rows, columns)
        self._device = device
        self._stream = _upload_stream(device)
        self._turns = self._alternate([torch.empty(shape, dtype=torch.uint8, pin_memory=True) for _ in range(2)])
        # The destination may reuse memory that queued work on the caller's stream still reads.
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def resize_into(self, destination: Tensor, chunk: NDArray[np.uint8], config: PreprocessingConfig) -> None:
        """Queue upload and resize of one chunk; what the caller queues from now on sees the result."""
        pinned, copied = next(self._turns)
        copied.synchronize()
        staging = pinned[: len(chunk)]
        # NumPy copies in this thread; torch would wake all cores, which are decoding, for a millisecond's work.
        np.copyto(staging.numpy(), chunk)
        with torch.cuda.stream(self._stream):
            frames = staging.to(self._device, non_blocking=True)
            copied.record(self._stream)
            destination.copy_(resize_frames(frames, destination.shape[-1], config))
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    @staticmethod
    def _alternate(buffers: list[Tensor]) -> Iterator[tuple[Tensor, torch.cuda.Event]]:
        """The buffers in turn, each with the event that says its last copy is done."""
        events = [torch.cuda.Event() for _ in buffers]
        while True:
            yield from zip(buffers, events, strict=True)
