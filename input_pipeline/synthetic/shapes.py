"""Moving shapes: clips whose classes differ by motion only, and the video files they become."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from input_pipeline.encode import Options, h264

Floats = NDArray[np.floating]
Event = tuple[int, int]
"""Frames `[start, end)` in which something happens: frame `start` is the first that differs."""

CLASSES = ("left", "right", "up", "down", "clockwise", "anticlockwise", "grow", "shrink")
"""Class names by label. Each odd class is the even one before it, played backwards."""

SIZE = 48  # pixels; a multiple of 16, the macroblock, and 1.5 times the 32 a small model sees
NUM_FRAMES = 20  # a clip of 16 starts at any of 5 frames
FPS = 12

# The state of the shape is four phases, each on a circle: x, y, angle, radius (turns). A class
# advances one of them at a constant speed (turns per frame), drawn between these two rows.
_FORWARD = np.array([-1.0, -1.0, 1.0, 1.0])
_SLOWEST = np.array([0.032, 0.032, 0.020, 0.070])
_FASTEST = np.array([0.047, 0.047, 0.034, 0.100])

_RADIUS = (0.13, 0.25)  # of the moving shape, as a fraction of the frame
_RESTING_RADIUS = (0.06, 0.10)
NUM_RESTING = 2  # smaller shapes
_TURNS = np.linspace(-math.pi, math.pi, 121)  # radians, around an outline
_RISE = 0.85  # share of a turn in which the radius rises; in the rest it falls back

_STORED = Options(crf=22, gop=10)


class _Look(NamedTuple):
    """How a shape looks: its outline and its texture, in units of its radius."""

    corners: int
    pointed: float  # 0 a polygon, more: a star
    colour: Floats  # [3]
    waves: Floats  # [K, 2] radians per radius
    offsets: Floats  # [K] radians
    amplitudes: Floats  # [K, 3]


def _texture(
    rng: np.random.Generator, num_waves: int, wavelengths: tuple[float, float], contrast: float
) -> tuple[Floats, Floats, Floats]:
    """Waves `[K, 2]`, offsets `[K]`, amplitudes `[K, 3]`: smooth, so it survives the codec."""
    # Directions are spread out: parallel waves alone would hide the motion along them.
    spread = np.arange(num_waves) + rng.uniform(0, 0.6, size=num_waves)
    direction = math.pi * (rng.uniform() + spread / num_waves)
    number = 2 * math.pi / rng.uniform(*wavelengths, size=num_waves)
    waves = number[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=-1)
    tint = rng.normal(size=(num_waves, 3)) * 0.5 + rng.choice([-1.0, 1.0], size=(num_waves, 1))
    amplitudes = contrast * tint / np.sqrt(np.mean(tint**2) * num_waves)
    offsets = rng.uniform(0, 2 * math.pi, size=num_waves)
    return waves, offsets, amplitudes


def _look(rng: np.random.Generator, background: Floats, detail: float) -> _Look:
    """A random shape whose mean colour differs from the background's in every channel.

    `detail` sets the texture's wavelengths; a small shape needs longer ones, in radii.
    """
    corners, pointed = ((3, 0.0), (4, 0.0), (6, 0.0), (4, 0.3), (5, 0.3))[rng.integers(5)]
    away = rng.uniform(0.25, 0.45, size=3) * np.where(background > 0.5, -1, 1)
    colour = background + away
    return _Look(corners, pointed, colour, *_texture(rng, 3, (1.0 / detail, 2.0 / detail), 0.25))


class _Thing(NamedTuple):
    """Something before the background, in pixels and radians."""

    look: _Look
    centre: Floats  # [T, 2]
    radius: Floats  # [T]
    angle: Floats  # [T]


class Scene(NamedTuple):
    """What is drawn of a clip; if it is `backwards`, it is played so."""

    mean: Floats  # [3]
    shake: Floats  # [T, 2] pixels
    texture: tuple[Floats, Floats, Floats]  # Of the background.
    things: list[_Thing]  # Those behind first; the last one is the shape.
    backwards: bool


def _background(scene: Scene, size: int) -> Floats:
    """A smooth texture seen by a moving camera, `[3, T, H, W]`."""
    (waves, offsets, amplitudes), shake = scene.texture, scene.shake
    pixels = np.arange(size)
    # cos(a + b) = cos a cos b - sin a sin b makes the whole clip one product of matrices.
    x = (pixels - shake[:, None, None, 0]) * waves[:, :1] + offsets[:, None]  # [T, K, W]
    y = (pixels[:, None] - shake[:, None, None, 1]) * waves[:, 1]  # [T, H, K]
    rows = np.concatenate([np.cos(y), -np.sin(y)], axis=-1)
    columns = np.concatenate([np.cos(x), np.sin(x)], axis=1)
    tints = np.concatenate([amplitudes, amplitudes])
    return np.stack([base + (rows * tint) @ columns for base, tint in zip(scene.mean, tints.T)])


def _outline(look: _Look, turn: Floats) -> Floats:
    """Distance of the outline from the centre at the given angles (radians), in radii."""
    wedge = 2 * math.pi / look.corners
    if look.pointed:
        return 1 + look.pointed * np.cos(look.corners * turn)
    area = math.sin(wedge) / wedge  # of the unit polygon relative to the unit disc
    return math.cos(wedge / 2) / math.sqrt(area) / np.cos(turn % wedge - wedge / 2)


def _paint(canvas: Floats, thing: _Thing) -> None:
    """Paints it into `[3, T, H, W]`, a torus: what leaves at one edge comes back at the other."""
    look, centre, radius, angle = thing
    size = canvas.shape[-1]
    widest = float(_outline(look, _TURNS).max())
    reach = math.ceil(widest * float(radius.max())) + 1
    window = np.arange(-reach, reach + 1)
    whole = np.floor(centre).astype(np.int64)
    part = centre - whole
    scale = radius[:, None, None]
    right = (window - part[:, :1])[:, None, :] / scale
    down = (window - part[:, 1:])[:, :, None] / scale
    turn = angle[:, None, None]
    u = right * np.cos(turn) + down * np.sin(turn)
    v = down * np.cos(turn) - right * np.sin(turn)

    inside = _outline(look, np.arctan2(v, u)) - np.sqrt(u * u + v * v)
    alpha = np.clip(inside * scale + 0.5, 0, 1)
    colour = np.broadcast_to(look.colour[:, None, None, None], (3, *u.shape))
    for wave, offset, amplitude in zip(look.waves, look.offsets, look.amplitudes):
        ripple = np.cos(u * wave[0] + v * wave[1] + offset)
        colour = colour + amplitude[:, None, None, None] * ripple

    frames = np.arange(canvas.shape[1])[:, None, None]
    rows = ((whole[:, 1:] + window) % size)[:, :, None]
    columns = ((whole[:, :1] + window) % size)[:, None, :]
    below = canvas[:, frames, rows, columns]
    canvas[:, frames, rows, columns] = below + alpha * (colour - below)


def _shake(rng: np.random.Generator, num_frames: int, size: int) -> Floats:
    """Camera path `[T, 2]` in pixels: stationary, the same in law backwards, about 1 pixel."""
    rate = rng.uniform(0.05, 0.2, size=(3, 2))
    offset = rng.uniform(size=(3, 2))
    waves = np.cos(2 * math.pi * (rate * np.arange(num_frames)[:, None, None] + offset))
    return 0.008 * size * waves.sum(axis=1)


def _pan(rng: np.random.Generator, speed: float, num_frames: int) -> Floats:
    """Camera path `[T, 2]` in pixels: straight on, in any direction, at 0.7 to 1.3 of `speed`."""
    if not speed:
        return np.zeros((num_frames, 2))
    angle = rng.uniform(0, 2 * math.pi)
    velocity = speed * rng.uniform(0.7, 1.3) * np.array([math.cos(angle), math.sin(angle)])
    return np.arange(num_frames)[:, None] * velocity


def moments(rng: np.random.Generator, num_frames: int, length: int) -> tuple[Event, ...]:
    """One or two events of `length` frames, anywhere in a video and at least `length` apart."""
    count = int(rng.integers(1, 3))
    spare = num_frames - (2 * count - 1) * length
    starts = np.sort(rng.integers(1, spare + 1, size=count)) + 2 * length * np.arange(count)
    return tuple((int(start), int(start) + length) for start in starts)


def scene(
    rng: np.random.Generator,
    label: int,
    num_frames: int = NUM_FRAMES,
    events: Sequence[Event] = (),
    pan: float = 0.0,
) -> Scene:
    """A clip of a class: a shape moves over a slightly shaking background.

    No single frame tells the class: x, y, angle and radius are drawn uniformly on circles in every
    class, and a uniform phase that advances stays uniform. Two classes of a pair are one clip
    played forwards and backwards; all even classes have the first frame in common, for the same
    `rng`, from which every label draws the same numbers. A horizontal flip changes the class.

    In `events` the shape moves, and rests in between; without any it moves all the time. With `pan`
    (widths a frame) the camera moves, too: everything shifts as one, whatever the class.
    """
    mean, size = rng.uniform(0.3, 0.7, size=3), SIZE
    shake = _shake(rng, num_frames, size) + _pan(rng, pan * size, num_frames)
    texture = _texture(rng, 5, (0.2 * size, 0.5 * size), 0.13)
    still, things = np.ones(num_frames), list[_Thing]()
    for _ in range(NUM_RESTING):
        centre = rng.uniform(0, size, size=2) + shake
        radius = size * rng.uniform(*_RESTING_RADIUS) * still
        look = _look(rng, mean, 0.5)
        things.append(_Thing(look, centre, radius, rng.uniform(0, 2 * math.pi) * still))

    speed = _FORWARD * rng.uniform(_SLOWEST, _FASTEST)
    speed[np.arange(4) != label // 2] = 0
    moving = np.zeros(num_frames, np.int64)
    for start, end in events or [(1, num_frames)]:
        moving[start:end] = 1
    elapsed = np.cumsum(moving)
    if backwards := bool(label % 2):  # The events are where the reader asked for them.
        elapsed = elapsed[-1] - elapsed[::-1]
    x, y, angle, swell = (rng.uniform(size=4) + elapsed[:, None] * speed).T % 1
    # A phase must return to its start: the radius rises slowly and falls back quickly.
    level = np.where(swell < _RISE, swell / _RISE, (1 - swell) / (1 - _RISE))
    radius = size * _RADIUS[0] * (_RADIUS[1] / _RADIUS[0]) ** level
    centre = size * np.stack([x, y], axis=-1) + shake
    things.append(_Thing(_look(rng, mean, 1.0), centre, radius, 2 * math.pi * angle))
    return Scene(mean, shake, texture, things, backwards)


def render(scene: Scene) -> NDArray[np.uint8]:
    """The clip, uint8 `[T, H, W, 3]`."""
    canvas = _background(scene, SIZE)
    for thing in scene.things:
        _paint(canvas, thing)
    # Drawn in float64: its last digits, which depend on the CPU, are lost in the rounding.
    frames = np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)
    return np.ascontiguousarray(frames.transpose(1, 2, 3, 0)[:: -1 if scene.backwards else 1])


def boxes(scene: Scene, frame: int) -> Floats:
    """x1, y1, x2, y2 `[K, 4]` of its things on a frame of the clip, fractions; the shape is last.

    Of what wraps around an edge it is the part around the centre.
    """
    at, found = ~frame if scene.backwards else frame, []
    for look, centre, radius, angle in scene.things:
        turn = (_TURNS + angle[at])[:, None]
        points = _outline(look, _TURNS)[:, None] * np.hstack([np.cos(turn), np.sin(turn)])
        ends = np.concatenate([points.min(axis=0), points.max(axis=0)]) * radius[at]
        found.append(np.tile(centre[at] % SIZE, 2) + ends)
    return np.clip(found, 0, SIZE) / SIZE


def encode(frames: NDArray[np.uint8], fps: int = FPS) -> bytes:
    """uint8 `[T, H, W, 3]` -> an mp4 file."""
    return h264(frames, fps, _STORED)
