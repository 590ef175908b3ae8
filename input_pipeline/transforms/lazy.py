"""A chain of RandAugment operations, computed only where a crop looks.

The boxes are walked backwards from the crop; neighbouring tables are merged into one; statistics
of whole frames are taken from the frames as they come where only tables stand before.
"""

import threading
from collections.abc import Sequence

import numpy as np

from input_pipeline.transforms import operations
from input_pipeline.transforms.crops import Box
from input_pipeline.transforms.operations import TABLES, Clip, Frames, Layer, Table
from input_pipeline.transforms.warp import WARPS, Size

_STATISTICS = ("AutoContrast", "Equalize", "Contrast")  # of each whole frame
_KEPT = 1 << 26  # bytes of one buffer that a thread keeps


class _Buffers(threading.local):
    """Two clips per thread, in turn: fresh memory costs more than most operations."""

    def __init__(self) -> None:
        self.kept = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def empty(self, t: int, h: int, w: int) -> Clip:
        """`[t, h, w, 3]`, good until the call after next."""
        self.kept.reverse()
        count = t * h * w * 3
        if count > _KEPT:
            return np.empty((t, h, w, 3), np.uint8)
        if self.kept[0].size < count:
            self.kept[0] = np.empty(count, np.uint8)
        return self.kept[0][:count].reshape(t, h, w, 3)


_buffers = _Buffers()


def _boxes(layers: Sequence[Layer], box: Box, size: Size) -> list[Box]:
    """What each layer must be given, in full-frame pixels, and last the crop itself."""
    tables_only = [True]  # before layer i
    for name, _ in layers:
        tables_only.append(tables_only[-1] and (name in TABLES or name in _STATISTICS))
    boxes = [box]
    for (name, argument), only in zip(reversed(layers), tables_only[-2::-1]):
        if name in WARPS:
            box = WARPS[name].source(box, size, argument)
        elif name in _STATISTICS and not only:
            box = (0, 0, *size)
        boxes.append(box)
    return boxes[::-1]


def _part(frames: Frames, have: Box, want: Box) -> Frames:
    if have == want:
        return frames
    y, x = want[0] - have[0], want[1] - have[1]
    inner = np.s_[..., y : y + want[2], x : x + want[3], :]
    return frames[inner] if isinstance(frames, np.ndarray) else [frame[inner] for frame in frames]


def _empty_like(frames: Frames) -> Clip:
    return _buffers.empty(len(frames), *frames[0].shape[:2])


def _mapped(frames: Frames, table: Table | None) -> Frames:
    if table is None:
        return frames
    return operations.lookup(frames, table, _empty_like(frames))


def apply(frames: Frames, layers: Sequence[Layer], box: Box) -> Frames:
    """Applies all layers to the full frames and crops them to the box, without doing so.

    Args:
        frames: T arrays uint8 `[H, W, 3]` of one size; never written to.
        layers: the operations, in order.
        box: the pixels to return.

    Returns:
        T arrays uint8 `[h, w, 3]`: parts of `frames`, or of buffers that the thread's next call
        writes to. A thread keeps two buffers, each as large as the largest clip so far, at most
        64 MiB; larger clips have their own for the duration of the call.
    """
    size = frames[0].shape[:2]
    have: Box = (0, 0, *size)
    table: Table | None = None
    boxes = _boxes(layers, box, size)
    for (name, argument), want, target in zip(layers, boxes, boxes[1:]):
        if name in TABLES:
            added = TABLES[name](argument)
        elif name == "Equalize":
            added = operations.equalize_tables(frames, table)
        elif name in _STATISTICS:
            frames, table = _mapped(frames, table), None
            added = (
                operations.auto_contrast_tables(frames)
                if name == "AutoContrast"
                else operations.contrast_tables(frames, argument)
            )
        else:
            frames, table = _mapped(_part(frames, have, want), table), None
            if name == "Color":
                frames = operations.color(frames, argument, _empty_like(frames))
            else:
                frames = WARPS[name].apply(frames, want, target, size, argument, _buffers.empty)
            have = target
            continue
        table = added if table is None else operations.compose(table, added)
    return _mapped(_part(frames, have, box), table)
