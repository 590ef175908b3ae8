"""RandAugment: PIL's pixels, timm's levels, one transformation per clip; and the erasing box."""

import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from input_pipeline.transforms import crops, warps
from input_pipeline.transforms import randaugment as augment
from input_pipeline.transforms.randaugment import NAMES, Layer

POLICY = augment.parse_rand_augment("rand-m7-n4-mstd0.5-inc1")
WITHIN_ONE = {"Color", "Contrast", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"}
LEVELS, SIGNS = (0.0, 3.3, 7.0, 9.9), (-1.0, 1.0)


def noise(t: int = 2, h: int = 37, w: int = 53, seed: int = 0) -> np.ndarray:
    """Frames of independent pixels, each frame in its own range of grey levels."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(9 * i, 200 + 9 * i, (h, w, 3), np.uint8) for i in range(t)])


def smooth(t: int = 2, h: int = 120, w: int = 160, seed: int = 1) -> np.ndarray:
    """Frames that vary slowly, as pictures do."""
    coarse = np.random.default_rng(seed).integers(20, 240, (t, 5, 6, 3), np.uint8)
    return np.stack([cv2.resize(c, (w, h), interpolation=cv2.INTER_CUBIC) for c in coarse])


def apply(frames: np.ndarray, layers: list[Layer], box: crops.Box | None = None) -> np.ndarray:
    box = box or (0, 0, *frames.shape[1:3])
    return np.stack(list(augment.apply(list(frames), layers, box)))


def operate(name: str, frames: np.ndarray, value: float) -> np.ndarray:
    return apply(frames, [Layer(name, value)])


def one_by_one(frames: np.ndarray, layers: list[Layer]) -> np.ndarray:
    """Every layer on whole frames, one after the other."""
    for layer in layers:
        frames = apply(frames, [layer])
    return frames


def cut(frames: np.ndarray, box: crops.Box) -> np.ndarray:
    y, x, h, w = box
    return frames[:, y : y + h, x : x + w]


def pil_operation(name: str, frame: np.ndarray, value: float) -> np.ndarray:
    """The operation as VideoMAE and timm apply it to a PIL image."""
    image_module = pytest.importorskip("PIL.Image")
    from PIL import ImageEnhance, ImageOps

    image = image_module.fromarray(frame)
    fill = {"resample": image_module.Resampling.BICUBIC, "fillcolor": (128, 128, 128)}
    w, h = image.size

    def affine(*matrix: float) -> object:
        return image.transform(image.size, image_module.Transform.AFFINE, matrix, **fill)

    add = [min(255, v + int(value)) if v < 128 else v for v in range(256)] * 3
    by_name: dict[str, Callable[[], object]] = {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "Rotate": lambda: image.rotate(value, **fill),
        "Posterize": lambda: ImageOps.posterize(image, int(value)),
        "Solarize": lambda: ImageOps.solarize(image, int(value)),
        "SolarizeAdd": lambda: image.point(add),
        "Color": lambda: ImageEnhance.Color(image).enhance(value),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(value),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(value),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(value),
        "ShearX": lambda: affine(1, value, 0, 0, 1, 0),
        "ShearY": lambda: affine(1, 0, 0, value, 1, 0),
        "TranslateX": lambda: affine(1, 0, value * w, 0, 1, 0),
        "TranslateY": lambda: affine(1, 0, 0, 0, 1, value * h),
    }
    return np.asarray(by_name[name]())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Rotate"])
def test_pixels_are_those_of_pil(name: str) -> None:
    few = np.random.default_rng(4).integers(90, 93, (1, 20, 30, 3)).astype(np.uint8)
    for frames, level, sign in itertools.product((noise(), smooth(), few), LEVELS, SIGNS):
        value = augment.argument(name, level, sign, increasing=True)
        expected = np.stack([pil_operation(name, f, value) for f in frames])
        difference = np.abs(operate(name, frames, value).astype(int) - expected)
        assert difference.max() <= (name in WITHIN_ONE), (level, sign)
        if name in warps.WARPS and frames is not few:
            assert (difference > 0).mean() < 0.01


def test_rotation_is_that_of_pil_but_for_the_kernel() -> None:
    frames = smooth()
    for degrees in (-29.7, -9.9, 9.9, 21.0):
        expected = np.stack([pil_operation("Rotate", f, degrees) for f in frames])
        got = operate("Rotate", frames, degrees)
        # Away from the seam to the fill, where OpenCV blends and PIL cuts.
        picture = pil_operation("Rotate", np.full_like(frames[0], 255), degrees)
        inside = cv2.erode(picture, np.ones((5, 5)), borderValue=0) == 255
        difference = np.abs(got.astype(int) - expected)[:, inside]
        assert difference.mean() < 0.55  # PIL truncates: half a level
        assert difference.max() <= 2
        assert (got[:, :4, :4] == 128).all()


def test_levels_worked_by_hand() -> None:
    at = augment.argument
    assert at("Rotate", 7, -1, True) == pytest.approx(-21)
    assert at("ShearX", 10, 1, True) == pytest.approx(0.3)
    assert at("TranslateY", 10, -1, True) == pytest.approx(-0.45)
    assert [at("Posterize", level, 1, True) for level in (0, 2.4, 7, 10)] == [4, 4, 2, 0]
    assert [at("Posterize", level, 1, False) for level in (0, 7, 10)] == [0, 2, 4]
    assert [at("Solarize", level, 1, True) for level in (0, 5, 10)] == [256, 128, 0]
    assert [at("Solarize", level, 1, False) for level in (0, 5, 10)] == [0, 128, 256]
    assert at("SolarizeAdd", 7, 1, True) == 77
    assert at("Color", 10, -1, True) == pytest.approx(0.1)
    assert at("Contrast", 5, 1, True) == pytest.approx(1.45)
    assert at("Sharpness", 10, -1, False) == pytest.approx(1.9)


def test_translation_by_whole_pixels() -> None:
    frames = noise(w=40)
    left = operate("TranslateX", frames, 0.25)  # reads 10 pixels further right
    np.testing.assert_array_equal(left[:, :, :30], frames[:, :, 10:])
    assert (left[:, :, 30:] == 128).all()
    frames = noise(h=40)
    down = operate("TranslateY", frames, -0.25)
    np.testing.assert_array_equal(down[:, 10:], frames[:, :30])
    assert (down[:, :10] == 128).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_box_is_that_of_whole_frames(name: str) -> None:
    rng = np.random.default_rng(0)
    differing = total = 0
    for (h, w), level, sign in itertools.product(((61, 83), (40, 23)), LEVELS[1:], SIGNS):
        layers = [Layer(name, augment.argument(name, level, sign, True))]
        boxes: list[crops.Box] = [(0, 0, 1, w), (0, w - 3, h, 3), (h - 1, w - 1, 1, 1)]
        for _ in range(5):
            ch, cw = (int(rng.integers(1, side + 1)) for side in (h, w))
            boxes.append((int(rng.integers(h - ch + 1)), int(rng.integers(w - cw + 1)), ch, cw))
        for frames, box in itertools.product((noise(2, h, w), smooth(2, h, w)), boxes):
            frames.flags.writeable = False
            difference = np.abs(
                apply(frames, layers, box).astype(int) - cut(apply(frames, layers), box)
            )
            assert difference.max() <= (name in ("Color", "Sharpness", "Rotate")), (level, box)
            differing += int((difference > 0).sum())
            total += difference.size
    assert differing < 1e-3 * total


def test_drawn_chains_are_those_on_whole_frames() -> None:
    # Not where neighbouring warps are one: there pixels are interpolated once, here twice.
    exact, means = 0, []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        h, w = (int(side) for side in rng.integers(40, 110, 2))
        frames = smooth(3, h, w, seed)
        before = frames.copy()
        layers = augment.draw_layers(rng, POLICY._replace(probability=(1.0, 0.5)[seed % 2]))
        box = crops.random_resized_crop(rng, h, w)
        want = crops.resize_clip(list(one_by_one(frames, layers)), box, 32, seed % 4 < 2)
        out = np.zeros((3, 32, 32, 3), np.uint8)
        got = augment.augmented_clip(out, list(frames), layers, box, 32, seed % 4 < 2)
        assert got is out
        assert np.array_equal(frames, before)
        difference = np.abs(got.astype(int) - want)
        moved = [layer.operation in warps.WARPS for layer in layers]
        if any(a and b for a, b in itertools.pairwise(moved)):
            assert np.median(difference) <= 2, (seed, layers)
            means.append(difference.mean())
        else:
            exact += 1
            assert (difference > 0).mean() < 4e-3, (seed, layers)
    assert exact > 100
    assert len(means) > 20
    assert max(means) < 2.5
    assert np.mean(means) < 0.7


def test_neighbouring_warps_are_one_map_and_lose_what_leaves_the_frame() -> None:
    frames = noise(2, 40, 60)
    back = apply(frames, [Layer("TranslateX", 0.25), Layer("TranslateX", -0.25)])
    assert np.array_equal(back[:, :, 15:], frames[:, :, 15:])  # Exact: nothing is interpolated.
    assert (back[:, :, :15] == 128).all()
    upright = apply(smooth(), [Layer("Rotate", 25.0), Layer("Rotate", -25.0)])
    middle = np.s_[:, 40:80, 50:110]
    assert np.abs(upright.astype(int) - smooth())[middle].max() <= 1
    assert (upright[:, :9, :9] == 128).all()
    inverted = apply(frames, [Layer("TranslateX", 0.25), Layer("Invert", 0)])
    assert (inverted[:, :, 45:] == 127).all()


def test_a_crop_of_nothing_but_fill() -> None:
    frames = noise(2, 40, 50)
    for layer, box in (
        (Layer("TranslateX", 0.45), (5, 45, 30, 5)),
        (Layer("TranslateY", -0.45), (0, 0, 9, 50)),
        (Layer("ShearX", 0.3), (36, 44, 4, 6)),
        (Layer("Rotate", 30.0), (0, 0, 2, 2)),
    ):
        chain = [Layer("Brightness", 1.3), Layer("Sharpness", 1.5), layer]
        assert (apply(frames, chain, box) == 128).all(), layer


def test_every_frame_gets_the_same_transformation_whatever_its_memory() -> None:
    frames = noise(t=4)
    for seed in range(12):
        layers = augment.draw_layers(np.random.default_rng(seed), POLICY)
        alone = np.concatenate([apply(frame[None], layers) for frame in frames])
        np.testing.assert_array_equal(apply(frames, layers), alone)
    view = noise(w=60)[::-1, 3:30, 5:50]
    for name in NAMES:
        value = augment.argument(name, 7.0, -1.0, True)
        np.testing.assert_array_equal(operate(name, view, value), operate(name, view.copy(), value))


def test_threads_do_not_share_memory() -> None:
    chain = [Layer("Contrast", 1.5), Layer("ShearY", 0.2), Layer("Rotate", 20.0)]
    chain += [Layer("Invert", 0), Layer("Color", 1.5), Layer("AutoContrast", 0)]
    clips = [smooth(2, 50, 60, seed) for seed in range(4)]
    alone = [apply(frames, chain) for frames in clips]
    same = [True] * 4

    def work(i: int) -> None:
        for _ in range(25):
            same[i] &= np.array_equal(apply(clips[i], chain), alone[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same)


def test_draws_follow_the_policy() -> None:
    rng = np.random.default_rng(5)
    clips = [augment.draw_layers(rng, POLICY) for _ in range(6000)]
    counts = np.bincount([len(layers) for layers in clips], minlength=5) / len(clips)
    binomial = [math.comb(4, k) / 16 for k in range(5)]
    np.testing.assert_allclose(counts, binomial, atol=0.025)
    layers = [layer for clip in clips for layer in clip]
    share = Counter(layer.operation for layer in layers)
    assert set(share) == set(NAMES)
    np.testing.assert_allclose(np.array(list(share.values())) / len(layers), 1 / 15, atol=0.01)
    assert any(len({layer.operation for layer in clip}) < len(clip) for clip in clips)
    angles = np.array([layer.argument for layer in layers if layer.operation == "Rotate"])
    assert (angles > 0).mean() == pytest.approx(0.5, abs=0.06)
    assert np.abs(angles).mean() == pytest.approx(21, abs=0.2)
    assert np.abs(angles).std() == pytest.approx(1.5, abs=0.15)
    wild = augment.Policy(5.0, 2000, magnitude_std=20.0, probability=1.0, increasing=True)
    shears = np.abs([a for name, a in augment.draw_layers(rng, wild) if name == "ShearX"])
    assert shears.max() == pytest.approx(0.3)
    assert shears.min() == 0
    assert augment.draw_layers(rng, POLICY._replace(probability=0.0)) == []


def test_draws_of_a_seed_stay_what_they_were() -> None:
    layers = augment.draw_layers(np.random.default_rng(3), POLICY._replace(probability=1.0))
    assert [name for name, _ in layers] == ["ShearY", "Equalize", "Invert", "Rotate"]
    values = [-0.17970020806279124, 0.0, 0.0, 25.984499274967327]
    assert [value for _, value in layers] == pytest.approx(values)


def test_policy_strings() -> None:
    assert augment.Policy(7.0, 4, 0.5, 0.5, True) == POLICY
    assert augment.parse_rand_augment("rand-m9-n2") == augment.Policy(9.0, 2)
    for text in ("", "rand", "augmix-m7-n4", "rand-n4-m7", "rand-m11-n4", "rand-m7-n4-inc2"):
        with pytest.raises(ValueError) as error:
            augment.parse_rand_augment(text)
        assert repr(text) in str(error.value)
        assert "\n" not in str(error.value)


def test_erasing_boxes() -> None:
    rng = np.random.default_rng(7)
    boxes = np.array([augment.erasing_box(rng, 224, 0.25) for _ in range(12000)])
    assert boxes.dtype == np.int32
    some = boxes[boxes[:, 2] > 0]
    assert not boxes[boxes[:, 2] == 0].any()
    assert len(some) / len(boxes) == pytest.approx(0.25, abs=0.015)
    y, x, h, w = some.T
    assert max(h.max(), w.max()) < 224
    assert y.min() == x.min() == 0
    assert (y + h).max() == (x + w).max() == 224
    area, aspect = h * w / 224**2, np.log(h / w)
    assert 0.019 < area.min() < 0.03
    assert 0.31 < area.max() < 1 / 3 + 0.005
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.008)
    assert np.abs(aspect).max() == pytest.approx(math.log(1 / 0.3), abs=0.06)
    assert aspect.mean() == pytest.approx(0, abs=0.05)
    assert aspect.std() == pytest.approx(math.log(1 / 0.3) / math.sqrt(3), abs=0.03)
    for probability in (0.0, 1.0):
        drawn = [augment.erasing_box(rng, 32, probability)[2] > 0 for _ in range(500)]
        assert np.mean(drawn) == probability
