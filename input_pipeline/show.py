"""A contact sheet of training clips as the model sees them, each frame with its number and time.

python -m input_pipeline.show train.txt --out sheet.png --count 4
python -m input_pipeline.show train.txt --sampling finetune --crop random_resized --flip \\
    --rand-augment rand-m7-n4-mstd0.5-inc1 --erasing 0.25
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from input_pipeline import check, elements
from input_pipeline.elements import ClipSpec
from input_pipeline.sources.records import DataError, Record
from input_pipeline.transforms import clips
from input_pipeline.video import decode
from input_pipeline.video.base import VideoError

_TILE, _MARGIN, _GAP, _CAPTION, _HEADING = 144, 20, 8, 20, 50  # pixels
_INK, _GREY = (24, 24, 27), (113, 113, 122)


class Shown(NamedTuple):
    """One clip of a sheet.

    Attributes:
        id: of its record.
        video: uint8 `[T, H, W, 3]`; grey where training erases.
        frames: int64 `[T]`, numbers in the source.
        times: float64 `[T]`, seconds from the first frame of the source; empty if unknown.
        title: which video and which label.
        details: of the source and of what was done.
    """

    id: str
    video: np.ndarray
    frames: np.ndarray
    times: np.ndarray
    title: str
    details: str


def collect(
    source: Sequence[Record], spec: ClipSpec, count: int, seed: int, names: Sequence[str] = ()
) -> tuple[list[Shown], list[str]]:
    """Training clips of `count` videos drawn by `seed`, R of each.

    Args:
        source: the records.
        spec: what becomes of each.
        count: videos; all if there are not so many.
        seed: of the choice of videos and, as in training, of every draw.
        names: class names by label.

    Returns:
        The clips, those of a video side by side, and one line for each unreadable video met.

    Raises:
        DataError: no records or a value of `spec` that cannot be.
    """
    elements.check(source, spec, 1, (0, 1))
    shown: list[Shown] = []
    failed: list[str] = []
    for position in map(int, np.random.default_rng(seed).permutation(len(source))):
        if len(shown) >= count * spec.repeats:
            break
        record = source[position]
        try:
            shown += _clips_of(source, record, spec, position, seed, names)
        except VideoError as error:
            failed.append(f"{record.id}: {error}")
    return shown, failed


def _clips_of(
    source: Sequence[Record],
    record: Record,
    spec: ClipSpec,
    position: int,
    seed: int,
    names: Sequence[str],
) -> list[Shown]:
    with decode.open_video(record.source, spec.min_frames, spec.timeout) as opened:
        n, height, width, codec = opened.header
        fps = opened.fps
        # Stills have no times.
        times = opened.clock.times if isinstance(opened, decode.Video) else np.empty(0)
        # Which frames is the first draw of an element.
        first = np.random.default_rng([seed, position])
        shape = (spec.num_frames, record.stride or spec.frame_stride)
        rule = clips.SAMPLING[spec.sampling]
        frames = elements.indices(opened, spec.fps, lambda n: rule(first, n, *shape))
    side = spec.image_size
    made = np.empty((spec.repeats, spec.num_frames, side, side, 3), np.uint8)
    address = {"position": position, "seed": (seed, position)}
    element = {"video": made} | elements.train_element(source, spec, None, address, out=made)
    if element["failed"]:
        raise VideoError(element["failed"][0][1])
    times = times[frames] if len(times) else times
    label = "no label"
    if record.label >= 0:
        name = f" {names[record.label]}" if record.label < len(names) else ""
        label = f"label {record.label}{name}"
    rate = f", {fps:.4g} frames/s, {n / fps:.1f} s" if fps else ""
    facts = f"{width} x {height}, {n} frames{rate}, {codec}"
    shown = []
    for repeat, video in enumerate(element["video"]):
        details, video = facts, video.copy()
        y, x, h, w = element["erase"][repeat] if spec.erasing > 0 else (0, 0, 0, 0)
        if h:
            video[:, y : y + h, x : x + w] = 128
            details += f"; {w} x {h} pixels erased"
        which = f"   (clip {repeat + 1} of {spec.repeats})" if spec.repeats > 1 else ""
        title = f"{record.id}   {label}{which}"
        shown.append(Shown(record.id, video, frames, times, title, details))
    return shown


def sheet(shown: Sequence[Shown]) -> Image.Image:
    """The picture: a heading and rows of captioned frames for each clip, on white."""
    columns = min(8, len(shown[0].frames))
    rows = -(-len(shown[0].frames) // columns)
    width = 2 * _MARGIN + columns * (_TILE + _GAP) - _GAP
    height = _HEADING + rows * (_TILE + _CAPTION) + _MARGIN
    picture = Image.new("RGB", (width, len(shown) * height + _MARGIN // 2), "white")
    draw = ImageDraw.Draw(picture)
    large, small, tiny = (ImageFont.load_default(size) for size in (17, 13, 12))
    for number, one in enumerate(shown):
        top = _MARGIN // 2 + number * height
        draw.text((_MARGIN, top + 8), one.title, _INK, large)
        draw.text((_MARGIN, top + 29), one.details, _GREY, small)
        for t, frame in enumerate(one.video):
            row, column = divmod(t, columns)
            x = _MARGIN + column * (_TILE + _GAP)
            y = top + _HEADING + row * (_TILE + _CAPTION)
            tile = Image.fromarray(frame).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            picture.paste(tile, (x, y))
            draw.text((x, y + _TILE + 1), str(one.frames[t]), _INK, tiny)
            if len(one.times):
                time = f"{one.times[t]:.2f} s"
                draw.text((x + _TILE, y + _TILE + 1), time, _GREY, tiny, anchor="ra")
    return picture


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; every field of `ClipSpec` for training is an option."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.show", description=(__doc__ or "").split("\n")[0]
    )
    check.add_source(parser)
    parser.add_argument("--out", default="sheet.png", help="picture to write")
    parser.add_argument("--count", type=int, default=4, help="videos")
    parser.add_argument("--seed", type=int, default=0)
    fields = dict(ClipSpec._field_defaults)
    for name in ("num_segments", "num_crops"):  # Of evaluation.
        del fields[name]
    for name, default in fields.items():
        text = f"as data.{name}; default {default or 'off'}"
        option = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, default=default, help=text
            )
        else:
            parser.add_argument(option, type=type(default), default=default, help=text)
    given = parser.parse_args(argv)
    try:
        source, names = check.load(given)
        spec = ClipSpec(**{name: getattr(given, name) for name in fields})
        shown, failed = collect(source, spec, given.count, given.seed, names)
        for line in failed:
            print(f"unreadable: {line}", file=sys.stderr)
        if not shown:
            raise DataError(f"{given.list}: none of its videos can be shown; see the lines above")
        file = epath.Path(given.out)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            sheet(shown).save(out, format="png")
    except (DataError, ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
