"""A few clips or views at a time, for figures and for `mvm.load`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from input_pipeline import elements, loader
from input_pipeline.synthetic import dataset as synthetic
from input_pipeline.transforms import clips
from input_pipeline.transforms import crops as spatial
from input_pipeline.video import decode
from mvm import data
from mvm.tasks import parts
from mvm.types import UserError


def views_of(
    config: Any, video: str | bytes | np.ndarray, num_segments: int = 1, num_crops: int = 1
) -> np.ndarray:
    """Views of one video as evaluation makes them.

    Args:
        config: a whole configuration.
        video: path of a file, its bytes, or all its frames, uint8 `[T, H, W, 3]`.
        num_segments: S, temporal positions; 1 is the middle.
        num_crops: C, places along the longer side; 1 is the centre.

    Returns:
        uint8 `[S * C, data.num_frames, data.image_size, data.image_size, 3]`, view =
        segment * C + crop; with frame selection all candidate frames.
    """
    spec = parts.clip_spec(config, "val")

    def wanted(n: int) -> np.ndarray:
        rule = clips.VIEWS[spec.sampling]
        return rule(n, spec.num_frames, spec.frame_stride, num_segments).ravel()

    if isinstance(video, np.ndarray):
        whole = list(video)  # So that a frame that is taken twice is one object, scaled once.
        frames = [whole[i] for i in wanted(len(whole))]
    else:
        try:
            with decode.open_video(video, spec.min_frames, spec.timeout) as opened:
                indices = elements.indices(opened, spec.fps, wanted)
                frames = opened.read(indices, lambda f: spatial.shrink(f, spec.image_size))
        except decode.VideoError as error:
            name = video if isinstance(video, str) else f"a video of {len(video)} bytes"
            raise UserError(f"{name}: {error}") from error
    return spatial.views_from_frames(frames, spec.image_size, num_segments, num_crops)


def take(config: Any, found: Sequence[data.Record], count: int) -> np.ndarray:
    """A few centred clips, evenly spread over the records, for figures: `[count, T, H, W, 3]`.

    With frame selection they have all candidate frames.
    """
    return np.stack([element["video"] for element in _sampled(config, found, count)])


def eventful(
    config: Any, found: Sequence[data.Record], count: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Samples of long synthetic videos and which of their frames show an event, for figures.

    Returns:
        As `take`, and bool `[count, T]`; None for other data.
    """
    length, spec = config.synthetic.long, parts.clip_spec(config, "val")
    if not length:
        return None
    try:
        events = synthetic.read_events(epath.Path(config.data.train or config.data.test).parent)
    except FileNotFoundError:
        return None
    elements = _sampled(config, found, count)
    rule = clips.SAMPLING[spec.sampling]  # Of a centred clip: it draws nothing.
    frames = rule(np.random.default_rng(0), length, spec.num_frames, spec.frame_stride)
    busy = np.zeros((len(elements), spec.num_frames), bool)
    for row, element in zip(busy, elements):
        for start, end in events.get(found[int(element["index"])].id, ()):
            row |= (frames >= start) & (frames < end)
    return np.stack([element["video"] for element in elements]), busy


def _sampled(config: Any, found: Sequence[data.Record], count: int) -> list[data.Batch]:
    """Elements of `count` records that can be read, spread over the list and in its order."""
    spec = parts.clip_spec(config, "val")
    spread = np.linspace(0, len(found) - 1, num=min(4 * count, len(found))).astype(int)
    elements: list[data.Batch] = []
    for position in np.concatenate([spread[first::4] for first in range(4)]):
        if len(elements) < count:
            element = loader.clip(found, spec, int(position), config.seed)
            if not element["skipped"]:
                elements.append(element)
    if not elements:
        raise UserError("none of the sampled videos can be read")
    return sorted(elements, key=lambda element: int(element["index"]))
