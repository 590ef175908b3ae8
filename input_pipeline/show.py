"""A contact sheet of training clips as the model sees them, each frame with its number and time.

python -m input_pipeline.show train.txt --out sheet.png --count 4
python -m input_pipeline.show train.txt --sampling finetune --crop random_resized --flip \\
    --rand-augment rand-m7-n4-mstd0.5-inc1 --erasing 0.25
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from input_pipeline import check, elements, loader
from input_pipeline.elements import ClipSpec
from input_pipeline.sources.records import DataError, Record
from input_pipeline.transforms import clips, crops
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError

_RULES = {"sampling": list(clips.SAMPLING), "crop": list(crops.CROPS)}


class Shown(NamedTuple):
    """One clip of a sheet.

    Attributes:
        video: uint8 `[T, H, W, 3]`; grey where training erases.
        frames: `[T]`, numbers in the source.
        times: `[T]`, seconds; empty if unknown.
    """

    video: np.ndarray
    frames: np.ndarray
    times: np.ndarray
    title: str
    details: str


def show(source: Sequence[Record], spec: ClipSpec, position: int, seed: int) -> Shown:
    """The clip that training makes of a record, the first of R.

    Raises:
        VideoError: the record cannot be read.
    """
    record = source[position]
    shape = (spec.num_frames, record.stride or spec.frame_stride)
    # Which frames is the first draw of an element.
    first, rule = np.random.default_rng([seed, position]), clips.SAMPLING[spec.sampling]
    with decode.open_video(record.source, spec.min_frames, spec.timeout) as video:
        n, height, width, codec = video.header
        frames = elements.indices(video, spec.fps, lambda n: rule(first, n, *shape))
        times = video.clock.times[frames] if isinstance(video, decode.Video) else np.empty(0)
        details = f"{width} x {height}, {n} frames, {video.fps:.4g} frames/s, {codec}"
    element = loader.clip(source, spec, position, seed)
    if element["skipped"]:
        raise VideoError("its frames cannot be decoded")
    pixels = element["video"].copy()
    y, x, h, w = element["erase"] if spec.erasing > 0 else (0, 0, 0, 0)
    pixels[:, y : y + h, x : x + w] = 128
    return Shown(pixels, frames, times, f"{record.id}   label {record.label}", details)


def sheet(shown: Sequence[Shown]) -> Figure:
    """The picture: for each clip a heading and a row of frames with their numbers and times."""
    count = len(shown[0].frames)
    figure = Figure((1.5 * count, 2.3 * len(shown)), dpi=96, layout="constrained")
    rows = figure.subfigures(len(shown), 1, squeeze=False)
    for one, row in zip(shown, rows[:, 0]):
        row.suptitle(f"{one.title}\n{one.details}", x=0.01, ha="left", fontsize=9)
        for t, axes in enumerate(row.subplots(1, count, squeeze=False)[0]):
            axes.imshow(one.video[t])
            axes.set_axis_off()
            when = f"  {one.times[t]:.2f} s" if len(one.times) else ""
            axes.set_title(f"{one.frames[t]}{when}", fontsize=8)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; every field of `ClipSpec` for training is an option."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.show", description=(__doc__ or "").split("\n")[0]
    )
    check.add_source(parser)
    parser.add_argument("--out", default="sheet.png", help="picture to write")
    parser.add_argument("--count", type=int, default=4, help="videos, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, help="of all draws, as in training")
    fields = dict(ClipSpec._field_defaults)
    for name in ("num_segments", "num_crops", "repeats"):
        del fields[name]
    for name, default in fields.items():
        kind: Any = {"action": "store_true"} if default is False else {"type": type(default)}
        if name in _RULES:
            kind |= {"choices": _RULES[name]}
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, default=default, help=f"as data.{name}", **kind)
    given = parser.parse_args(argv)
    try:
        source, names = check.load(given)
        spec = ClipSpec(**{name: getattr(given, name) for name in fields})
        shown: list[Shown] = []
        for position in map(int, np.random.default_rng(given.seed).permutation(len(source))):
            if len(shown) == given.count:
                break
            try:
                one, label = show(source, spec, position, given.seed), source[position].label
                name = names[label] if 0 <= label < len(names) else ""
                shown.append(one._replace(title=f"{one.title}  {name}"))
            except VideoError as error:
                print(f"unreadable: {source[position].id}: {error}", file=sys.stderr)
        if not shown:
            raise DataError(f"{given.list}: none of its videos can be shown; see the lines above")
        sheet(shown).savefig(given.out)
    except (DataError, OSError) as error:
        parser.error(str(error))
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
