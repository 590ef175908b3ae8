"""A contact sheet of training clips as the model sees them, each frame with its number and time.

python -m input_pipeline.show --config configs/my_clips.py --config.data.root=clips --out sheet.png
python -m input_pipeline.show train.txt --count 4
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from input_pipeline import command, elements, loader
from input_pipeline.elements import ClipSpec
from input_pipeline.sources.records import DataError, Record
from input_pipeline.transforms import clips
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError


class Shown(NamedTuple):
    video: np.ndarray  # uint8 `[T, H, W, 3]`; grey where training erases.
    frames: np.ndarray  # `[T]`, numbers in the source.
    times: np.ndarray  # `[T]`, seconds; empty if unknown.
    title: str


def show(source: Sequence[Record], spec: ClipSpec, position: int, seed: int) -> Shown:
    """The clip that training makes of a record, the first of R."""
    record = source[position]
    shape = (spec.num_frames, record.stride or spec.frame_stride)
    # Which frames is the first draw of an element.
    first, rule = np.random.default_rng([seed, position]), clips.SAMPLING[spec.sampling]
    with decode.open_video(record.source, spec.min_frames) as video:
        n, height, width, codec = video.header
        frames = elements.wanted_of(video, record, spec, lambda n: rule(first, n, *shape))
        times = video.clock.times[frames] if isinstance(video, decode.Video) else np.empty(0)
        facts = f"{width} x {height}, {n} frames, {video.fps:.4g} frames/s, {codec}"
    element = loader.clip(source, spec, position, seed)
    if element["skipped"]:
        raise VideoError("its frames cannot be decoded")
    pixels = element["video"].copy()
    y, x, h, w = element["erase"] if spec.erasing > 0 else (0, 0, 0, 0)
    pixels[:, y : y + h, x : x + w] = 128
    return Shown(pixels, frames, times, f"{record.id}   label {record.label}\n{facts}")


def sheet(shown: Sequence[Shown]) -> Figure:
    count = len(shown[0].frames)
    columns = min(8, count)
    rows = -(-count // columns)
    figure = Figure((1.5 * columns, len(shown) * (0.5 + 1.7 * rows)), layout="constrained")
    for part, one in zip(figure.subfigures(len(shown), squeeze=False).flat, shown):
        part.suptitle(one.title, x=0.01, horizontalalignment="left", size=9)
        for t, axes in enumerate(part.subplots(rows, columns, squeeze=False).flat):
            axes.axis("off")
            if t < count:
                axes.imshow(one.video[t])
                time = f"   {one.times[t]:.2f} s" if len(one.times) else ""
                axes.set_title(f"{one.frames[t]}{time}", size=8)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; without a recipe a clip is `ClipSpec`'s."""
    parser = command.parser("show", __doc__)
    parser.add_argument("--out", default="sheet.png", help="picture to write")
    parser.add_argument("--count", type=int, default=4, help="videos, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, help="of all draws, as in training")
    given, found = command.parse(parser, argv)
    print(*found.lines(), sep="\n")
    source, spec = next(iter(found.splits.values())), found.spec
    shown: list[Shown] = []
    for position in map(int, np.random.default_rng(given.seed).permutation(len(source))):
        try:
            one, label = show(source, spec, position, given.seed), source[position].label
        except VideoError as error:
            print(f"unreadable: {source[position].id}: {error}", file=sys.stderr)
            continue
        name = f"{found.names[label]}   " if 0 <= label < len(found.names) else ""
        shown.append(one._replace(title=name + one.title))
        if len(shown) == given.count:
            break
    if not shown:
        raise DataError("none of the videos can be shown; see the lines above")
    epath.Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    with epath.Path(given.out).open("wb") as file:
        sheet(shown).savefig(file, format="png")
    print(given.out)
    return 0


if __name__ == "__main__":
    command.run(main)
