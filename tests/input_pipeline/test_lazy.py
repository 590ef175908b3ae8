"""What is computed for a crop is what whole frames, then the crop, would give."""

import itertools
import threading

import cv2
import numpy as np
import pytest
import whole_frames

from input_pipeline.transforms import (
    crops as spatial,
)
from input_pipeline.transforms import (
    lazy,
    operations,
    warp,
)
from input_pipeline.transforms import (
    randaugment as augment,
)
from input_pipeline.transforms.operations import NAMES, Layer

POLICY = augment.parse_rand_augment("rand-m7-n4-mstd0.5-inc1")
EXACT = set(NAMES) - {"Rotate", "Color", "Sharpness"}  # those round in another place at times


def clip(kind: str, t: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    """Independent pixels, or frames that vary slowly, as pictures do."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (t, h, w, 3), np.uint8)
    coarse = rng.integers(20, 240, (t, 5, 6, 3), np.uint8)
    return np.stack([cv2.resize(c, (w, h), interpolation=cv2.INTER_CUBIC) for c in coarse])


def one_by_one(frames: np.ndarray, layers: list[Layer]) -> np.ndarray:
    """Every layer on whole frames; the single operations are held against PIL elsewhere."""
    for layer in layers:
        whole = (0, 0, *frames.shape[1:3])
        frames = np.stack(list(lazy.apply(frames, [layer], whole)))
    return frames


def cut(frames: np.ndarray, box: spatial.Box) -> np.ndarray:
    y, x, h, w = box
    return frames[:, y : y + h, x : x + w]


def boxes(h: int, w: int) -> list[spatial.Box]:
    """The frame, its corners, edges, single pixels, and some at random."""
    rng = np.random.default_rng(h * w)
    some: list[spatial.Box] = [(0, 0, h, w), (0, 0, 1, w), (0, w - 3, h, 3), (h - 1, w - 1, 1, 1)]
    some += [(h - 9, 0, 9, 9), (0, w - 9, 9, 9), (h // 2, w // 2, 1, 1), (1, 1, h - 2, w - 2)]
    for _ in range(5):
        ch, cw = int(rng.integers(1, h + 1)), int(rng.integers(1, w + 1))
        some.append((int(rng.integers(h - ch + 1)), int(rng.integers(w - cw + 1)), ch, cw))
    return some


@pytest.mark.parametrize("shape", [(61, 83), (40, 23), (90, 120)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_one_operation_for_any_box(name: str, shape: tuple[int, int]) -> None:
    differing = total = 0
    for kind, level, sign in itertools.product(("noise", "smooth"), (0.4, 7.0, 9.9), (-1.0, 1.0)):
        frames = clip(kind, 2, *shape)
        layer = Layer(name, augment.argument(name, level, sign, True))
        whole = one_by_one(frames, [layer])
        for box in boxes(*shape):
            got = np.stack(list(lazy.apply(list(frames), [layer], box)))
            difference = np.abs(got.astype(int) - cut(whole, box))
            assert difference.max() <= (0 if name in EXACT else 1), (kind, level, sign, box)
            differing += int((difference > 0).sum())
            total += difference.size
    assert differing < 1e-3 * total


@pytest.mark.parametrize("first", NAMES)
def test_pairs_of_operations(first: str) -> None:
    frames = clip("smooth", 3, 45, 62)
    for second in NAMES:
        pair = [Layer(n, augment.argument(n, 7.0, 1.0, True)) for n in (first, second)]
        box = (8, 11, 30, 33)
        got = np.stack(list(lazy.apply(list(frames), pair, box)))
        differs = got != cut(one_by_one(frames, pair), box)
        assert differs.mean() < 2e-3, pair
        if {first, second} <= EXACT:
            assert not differs.any(), pair


@pytest.mark.parametrize("part", range(4))
def test_drawn_chains_with_crop_resize_and_mirroring(part: int) -> None:
    moved = 0
    for seed in range(60 * part, 60 * part + 60):
        rng = np.random.default_rng(seed)
        h, w = (int(side) for side in rng.integers(20, 90, 2))
        frames = clip(("noise", "smooth")[seed % 2], 3, h, w, seed)
        before = frames.copy()
        policy = POLICY._replace(probability=1.0 if seed % 3 == 0 else 0.5)
        flip = seed % 4 < 2

        old, new = np.random.default_rng(seed), np.random.default_rng(seed)
        layers = augment.draw_layers(old, policy)
        box = spatial.random_resized_crop(old, h, w)
        want = spatial.resize_clip(list(one_by_one(frames, layers)), box, 32, flip)

        again = augment.draw_layers(new, policy)
        out = np.zeros((3, 32, 32, 3), np.uint8)
        given = spatial.random_resized_crop(new, h, w)
        got = augment.augmented_clip(out, list(frames), again, given, 32, flip)
        assert got is out
        assert (got != want).mean() < 4e-3, layers
        if {layer.operation for layer in layers} <= EXACT:
            assert np.array_equal(got, want), layers
            moved += bool(layers)
        assert np.array_equal(frames, before)
    assert moved > 10


def test_rand_augment_is_the_chain_on_whole_frames() -> None:
    frames = clip("smooth", 2, 31, 44)
    for seed in range(20):
        layers = augment.draw_layers(np.random.default_rng(seed), POLICY)
        got = whole_frames.rand_augment(np.random.default_rng(seed), frames, POLICY)
        differs = got != one_by_one(frames, layers)
        assert differs.mean() < 1e-3
        assert not np.shares_memory(got, lazy.apply(frames, layers, (0, 0, 31, 44))) or not layers


def test_frames_that_a_table_leaves_alone_are_not_overwritten() -> None:
    # Half the frames have all levels: AutoContrast changes the other half only.
    frames = clip("noise", 4, 40, 50)
    frames[1::2] = frames[1::2] // 2 + 40
    layers = [Layer("Contrast", 1.6), Layer("AutoContrast", 0), Layer("Color", 1.5)]
    layers += [Layer("AutoContrast", 0), Layer("Sharpness", 0.4), Layer("ShearY", 0.2)]
    got = np.stack(list(lazy.apply(list(frames), layers, (3, 4, 20, 30))))
    assert (got != cut(one_by_one(frames, layers), (3, 4, 20, 30))).mean() < 1e-3


def test_a_crop_of_nothing_but_fill() -> None:
    frames = clip("noise", 2, 40, 50)
    for layer, box in (
        (Layer("TranslateX", 0.45), (5, 45, 30, 5)),
        (Layer("TranslateY", -0.45), (0, 0, 9, 50)),
        (Layer("ShearX", 0.3), (36, 44, 4, 6)),
        (Layer("Rotate", 30.0), (0, 0, 2, 2)),
    ):
        chain = [Layer("Brightness", 1.3), Layer("Sharpness", 1.5), layer]
        assert (np.stack(list(lazy.apply(list(frames), chain, box))) == 128).all(), layer


@pytest.mark.parametrize("name", warp.WARPS)
def test_source_boxes_lie_in_the_frame(name: str) -> None:
    for value in (-30.0, 17.0) if name == "Rotate" else (-0.45, 0.0, 0.21):
        for box in boxes(37, 53):
            y, x, h, w = warp.WARPS[name].source(box, (37, 53), value)
            assert min(h, w) >= 1
            assert 0 <= y <= 37 - h
            assert 0 <= x <= 53 - w


def test_threads_do_not_share_buffers() -> None:
    frames = [clip("smooth", 2, 50, 60, seed) for seed in range(4)]
    chain = [
        Layer("Contrast", 1.5),
        Layer("ShearY", 0.2),
        Layer("Rotate", 20.0),
        Layer("Invert", 0),
    ]
    box = (5, 6, 40, 41)
    alone = [np.stack(list(lazy.apply(f, chain, box))) for f in frames]
    same = [True] * 4

    def work(i: int) -> None:
        for _ in range(25):
            got = np.stack(list(lazy.apply(frames[i], chain, box)))
            same[i] &= np.array_equal(got, alone[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same)


def test_tables_merge_exactly() -> None:
    every = [
        operations.TABLES[name](augment.argument(name, 7.0, 1.0, True))
        for name in operations.TABLES
    ]
    rng = np.random.default_rng(0)
    every.append(rng.integers(0, 256, (2, 256, 3)).astype(np.uint8))
    every.append(rng.integers(0, 256, (2, 256, 1)).astype(np.uint8))
    frames = clip("noise", 2, 9, 11)
    buffers = [np.empty_like(frames) for _ in range(3)]
    for first, second in itertools.product(every, every):
        middle = operations.lookup(frames, first, buffers[0])
        want = operations.lookup(middle, second, buffers[1])
        got = operations.lookup(frames, operations.compose(first, second), buffers[2])
        np.testing.assert_array_equal(got, want)
