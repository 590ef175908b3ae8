"""CPU time of augmentation per clip: lazily for the crop, beside whole frames and then the crop.

python -m benchmarks.augment [--rounds 5] [--clips 120]

Both sides take the same clips of 16 frames, layers, crops and mirrorings; rounds alternate, and
each clip counts with its fastest round. Times are user and system time of the process.
"""

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np

from input_pipeline.transforms import crops as spatial
from input_pipeline.transforms import lazy
from input_pipeline.transforms import randaugment as augment
from input_pipeline.transforms.operations import NAMES, Clip, Layer

SIZES = ((240, 320), (320, 426))
POLICY = augment.parse_rand_augment("rand-m7-n4-mstd0.5-inc1")
OUT = 224

Side = Callable[[Clip, list[np.ndarray], list[Layer], spatial.Box, bool], object]


def made_clip(h: int, w: int, num_frames: int = 16) -> list[np.ndarray]:
    """Frames `[h, w, 3]` that vary slowly, as pictures do, with a little noise."""
    rng = np.random.default_rng(1)
    frames = []
    for coarse in rng.integers(0, 256, (num_frames, 15, 20, 3), np.uint8):
        smooth = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
        frames.append(cv2.add(smooth, rng.integers(0, 8, (h, w, 3), np.uint8)))
    return frames


def whole_frames(
    out: Clip, frames: list[np.ndarray], layers: list[Layer], box: spatial.Box, flip: bool
) -> None:
    """Every layer on whole frames, one by one; then crop, scale, mirror."""
    clip = np.stack(frames) if layers else frames
    full = (0, 0, *frames[0].shape[:2])
    for layer in layers:
        clip = np.stack(list(lazy.apply(clip, [layer], full)))
    spatial.resize_clip(list(clip), box, OUT, flip, out)


def for_the_crop(
    out: Clip, frames: list[np.ndarray], layers: list[Layer], box: spatial.Box, flip: bool
) -> None:
    """What the pipeline does."""
    augment.augmented_clip(out, frames, layers, box, OUT, flip)


def measure(
    sides: list[Side], frames: list[np.ndarray], draws: list[list[Layer]], rounds: int
) -> np.ndarray:
    """Mean CPU milliseconds per clip of each side."""
    out = np.zeros((len(frames), OUT, OUT, 3), np.uint8)
    best = np.full((len(sides), len(draws)), np.inf)
    for turn in range(rounds):
        for i, layers in enumerate(draws):
            rng = np.random.default_rng(i)
            box = spatial.random_resized_crop(rng, *frames[0].shape[:2])
            flip = bool(rng.random() < 0.5)
            for number in np.roll(range(len(sides)), turn):
                start = time.process_time()
                sides[number](out, frames, layers, box, flip)
                best[number, i] = min(best[number, i], time.process_time() - start)
    return best.mean(axis=1) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=120, help="draws of the whole policy")
    options = parser.parse_args()
    print("cpu-ms per clip of 16 frames, crop and resize to 224 included: whole frames / lazy")
    for h, w in SIZES:
        frames = made_clip(h, w)
        print(f"{w}x{h}")
        jobs = {
            name: [
                [Layer(name, augment.argument(name, 7.0, sign, True))] for sign in (-1.0, 1.0) * 12
            ]
            for name in NAMES
        }
        rng = np.random.default_rng(0)
        policy = [augment.draw_layers(rng, POLICY) for _ in range(options.clips)]
        for name, draws in {**jobs, "whole policy": policy}.items():
            before, after = measure([whole_frames, for_the_crop], frames, draws, options.rounds)
            print(f"  {name:13} {before:7.2f} {after:7.2f}   x {before / after:.1f}", flush=True)


if __name__ == "__main__":
    main()
