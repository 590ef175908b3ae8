"""RandAugment: PIL's pixels, timm's levels, one transformation per clip; and the erasing box."""

import math
from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import whole_frames

from input_pipeline.transforms import lazy, operations
from input_pipeline.transforms import randaugment as augment

POLICY = augment.parse_rand_augment("rand-m7-n4-mstd0.5-inc1")
WITHIN_ONE = {"Color", "Contrast", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"}
ARGUMENTS = [
    (name, level, sign)
    for name in operations.NAMES
    if name != "Rotate"
    for level in (0.0, 3.3, 7.0, 9.9)
    for sign in (-1.0, 1.0)
]


def noise(t: int = 2, h: int = 37, w: int = 53) -> np.ndarray:
    """Frames of independent pixels, each frame in its own range of grey levels."""
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(9 * i, 200 + 9 * i, (h, w, 3), np.uint8) for i in range(t)])


def smooth(t: int = 2, h: int = 120, w: int = 160) -> np.ndarray:
    """Frames that vary slowly, as pictures do."""
    coarse = np.random.default_rng(1).integers(0, 256, (t, 5, 6, 3), np.uint8)
    return np.stack([cv2.resize(c, (w, h), interpolation=cv2.INTER_CUBIC) for c in coarse])


def operate(name: str, frames: np.ndarray, value: float) -> np.ndarray:
    """One operation on whole frames."""
    full = (0, 0, *frames.shape[1:3])
    return np.stack(list(lazy.apply(frames, [operations.Layer(name, value)], full)))


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


@pytest.mark.parametrize("frames", [noise(), smooth()], ids=["noise", "smooth"])
@pytest.mark.parametrize(("name", "level", "sign"), ARGUMENTS)
def test_pixels_are_those_of_pil(name: str, level: float, sign: float, frames: np.ndarray) -> None:
    value = augment.argument(name, level, sign, increasing=True)
    expected = np.stack([pil_operation(name, f, value) for f in frames])
    got = operate(name, frames, value)
    difference = np.abs(got.astype(int) - expected)
    if name in WITHIN_ONE:
        assert difference.max() <= 1
        if name[:5] in ("Shear", "Trans"):
            assert (difference > 0).mean() < 0.01
    else:
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("degrees", [-29.7, -9.9, 9.9, 21.0])
def test_rotation_is_that_of_pil_but_for_the_kernel(degrees: float) -> None:
    frames = smooth()
    expected = np.stack([pil_operation("Rotate", f, degrees) for f in frames])
    got = operate("Rotate", frames, degrees)
    # Away from the seam to the fill, where OpenCV blends and PIL cuts.
    picture = pil_operation("Rotate", np.full_like(frames[0], 255), degrees)
    inside = cv2.erode(picture, np.ones((5, 5)), borderValue=0) == 255
    difference = np.abs(got.astype(int) - expected)[:, inside]
    assert difference.mean() < 0.55  # PIL truncates: half a level
    assert difference.max() <= 2
    corner = np.s_[:, :4, :4]
    np.testing.assert_array_equal(got[corner], 128)
    np.testing.assert_array_equal(expected[corner], 128)


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize"])
@pytest.mark.parametrize("levels", [(90, 91), (200, 201), (0, 256), (30, 34)])
def test_histogram_operations_on_few_levels(name: str, levels: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    frames = rng.integers(*levels, (1, 20, 30, 3)).astype(np.uint8)
    expected = pil_operation(name, frames[0], 0.0)
    np.testing.assert_array_equal(operate(name, frames, 0.0)[0], expected)


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, 0.0) for name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")],
        *[(name, 1.0) for name in ("Color", "Contrast", "Brightness", "Sharpness")],
        *[("Posterize", 8.0), ("Solarize", 256.0), ("SolarizeAdd", 0.0)],
    ],
)
def test_argument_that_changes_nothing(name: str, value: float) -> None:
    np.testing.assert_array_equal(operate(name, noise(), value), noise())


def test_translation_by_whole_pixels() -> None:
    frames = noise(w=40)
    left = operate("TranslateX", frames, 0.25)  # reads 10 pixels further right
    np.testing.assert_array_equal(left[:, :, :30], frames[:, :, 10:])
    assert (left[:, :, 30:] == 128).all()
    frames = noise(h=40)
    down = operate("TranslateY", frames, -0.25)
    np.testing.assert_array_equal(down[:, 10:], frames[:, :30])
    assert (down[:, :10] == 128).all()


def test_grey_stays_grey() -> None:
    grey = np.repeat(noise()[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(operate("Color", grey, 1.63), grey)


@pytest.mark.parametrize("seed", range(12))
def test_every_frame_gets_the_same_transformation(seed: int) -> None:
    frames = noise(t=4)
    clip = whole_frames.rand_augment(np.random.default_rng(seed), frames, POLICY)
    alone = [
        whole_frames.rand_augment(np.random.default_rng(seed), frame[None], POLICY)[0]
        for frame in frames
    ]
    np.testing.assert_array_equal(clip, np.stack(alone))


@pytest.mark.parametrize("name", operations.NAMES)
def test_operations_do_not_write_to_their_input(name: str) -> None:
    frames = noise()
    frames.flags.writeable = False
    out = operate(name, frames, augment.argument(name, 7.0, 1.0, True))
    assert out.shape == frames.shape
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(frames, noise())
    assert not np.array_equal(out, frames)


def test_frames_may_be_a_view() -> None:
    wide = noise(w=60)
    view, copy = wide[::-1, 3:30, 5:50], wide[::-1, 3:30, 5:50].copy()
    for name in operations.NAMES:
        value = augment.argument(name, 7.0, -1.0, True)
        np.testing.assert_array_equal(operate(name, view, value), operate(name, copy, value), name)


def test_draws_follow_the_policy() -> None:
    rng = np.random.default_rng(5)
    clips = [augment.draw_layers(rng, POLICY) for _ in range(6000)]
    counts = np.bincount([len(layers) for layers in clips], minlength=5) / len(clips)
    binomial = [math.comb(4, k) / 16 for k in range(5)]
    np.testing.assert_allclose(counts, binomial, atol=0.025)
    layers = [layer for clip in clips for layer in clip]
    share = Counter(layer.operation for layer in layers)
    assert set(share) == set(operations.NAMES)
    np.testing.assert_allclose(np.array(list(share.values())) / len(layers), 1 / 15, atol=0.01)
    assert any(len({layer.operation for layer in clip}) < len(clip) for clip in clips)
    angles = np.array([layer.argument for layer in layers if layer.operation == "Rotate"])
    assert (angles > 0).mean() == pytest.approx(0.5, abs=0.06)
    assert np.abs(angles).mean() == pytest.approx(21, abs=0.2)
    assert np.abs(angles).std() == pytest.approx(1.5, abs=0.15)


def test_levels_are_clipped() -> None:
    rng = np.random.default_rng(6)
    wild = augment.Policy(5.0, 2000, magnitude_std=20.0, probability=1.0, increasing=True)
    shears = [a for name, a in augment.draw_layers(rng, wild) if name == "ShearX"]
    assert max(np.abs(shears)) == pytest.approx(0.3)
    assert min(np.abs(shears)) == 0


def test_no_layer_no_change() -> None:
    frames = noise()
    for policy in (POLICY._replace(num_layers=0), POLICY._replace(probability=0.0)):
        assert whole_frames.rand_augment(np.random.default_rng(0), frames, policy) is frames


def test_the_seed_decides() -> None:
    policy = POLICY._replace(probability=1.0)
    first, again, other = (
        whole_frames.rand_augment(np.random.default_rng(seed), noise(), policy)
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_policy_strings() -> None:
    assert augment.Policy(7.0, 4, 0.5, 0.5, True) == POLICY
    assert augment.parse_rand_augment("rand-m9-n2") == augment.Policy(9.0, 2)


@pytest.mark.parametrize(
    "text",
    ["", "rand", "augmix-m7-n4", "rand-n4-m7", "rand-m11-n4", "rand-m7-n4-inc2", "rand-m7-n"],
)
def test_bad_policy_string_is_named(text: str) -> None:
    with pytest.raises(ValueError) as error:
        augment.parse_rand_augment(text)
    assert repr(text) in str(error.value)
    assert "rand-m<magnitude" in str(error.value)
    assert "\n" not in str(error.value)


def test_erasing_boxes() -> None:
    rng = np.random.default_rng(7)
    boxes = np.array([augment.erasing_box(rng, 224, 0.25) for _ in range(12000)])
    assert boxes.dtype == np.int32
    some = boxes[boxes[:, 2] > 0]
    assert not boxes[boxes[:, 2] == 0].any()
    assert len(some) / len(boxes) == pytest.approx(0.25, abs=0.015)
    y, x, h, w = some.T
    assert (h < 224).all()
    assert (w < 224).all()
    assert y.min() == 0
    assert x.min() == 0
    assert (y + h).max() == 224
    assert (x + w).max() == 224
    area, aspect = h * w / 224**2, np.log(h / w)
    assert 0.019 < area.min() < 0.03
    assert 0.31 < area.max() < 1 / 3 + 0.005
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.008)
    assert np.abs(aspect).max() == pytest.approx(math.log(1 / 0.3), abs=0.06)
    assert aspect.mean() == pytest.approx(0, abs=0.05)
    assert aspect.std() == pytest.approx(math.log(1 / 0.3) / math.sqrt(3), abs=0.03)


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_erasing_never_and_always(probability: float, share: float) -> None:
    rng = np.random.default_rng(8)
    boxes = np.array([augment.erasing_box(rng, 32, probability) for _ in range(500)])
    assert (boxes[:, 2] > 0).mean() == share
