"""Boxes are inside the frame and of the released kinds; pixels are those of the box."""

import numpy as np

from input_pipeline import loader, windows
from input_pipeline.elements import ClipSpec
from input_pipeline.sources.records import Record
from input_pipeline.synthetic import shapes
from input_pipeline.transforms import crops
from mvm import samples


def test_sizes_and_offsets_are_golden(shared):
    for release in ("frames_videomae", "frames_videomaev2"):
        with np.load(shared / "golden" / f"{release}.npz", allow_pickle=False) as file:
            golden = {k.split("/")[1]: file[k] for k in file.files if k.startswith("spatial/")}
        for row in range(10):
            h, w, rh, rw = (int(golden[key][row]) for key in ("H", "W", "rh", "rw"))
            assert crops.short_side(h, w, 224) == (rh, rw)
            corners = crops.crop_offsets(rh, rw, 224, 3)
            want = golden["spatial_start"][row]
            assert [c[golden["crop_axis"][row]] for c in corners] == want.tolist()
            assert sum(map(sum, corners)) == want.sum()
            center = (int(golden["center_y"][row]), int(golden["center_x"][row]))
            assert crops.crop_offsets(rh, rw, 224, 1) == [center]


def test_multi_scale_boxes_by_hand():
    boxes = crops.multi_scale_boxes(240, 320, 224)
    assert len(boxes) == 130
    # int(240 * (1, .875, .75, .66)); none is within 2 pixels of 224.
    assert {box[2] for box in boxes} == {240, 210, 180, 158}
    assert {(0, 80, 240, 240), (7 * 2, 27 * 2, 210, 210)} <= {*boxes}
    assert (240, 180) not in {box[2:] for box in boxes}
    assert {box[2] for box in crops.multi_scale_boxes(256, 340, 224)} == {256, 224, 192, 168}


def test_boxes_are_inside_any_frame():
    rng = np.random.default_rng(0)
    for name, crop in crops.CROPS.items():
        for h, w in ((240, 320), (320, 240), (16, 16), (1, 1), (2, 500), (500, 3), (223, 222)):
            for _ in range(60):
                y, x, ch, cw = crop(rng, h, w, 224)
                assert min(ch, cw) >= 1, name
                assert 0 <= y <= h - ch, name
                assert 0 <= x <= w - cw, name


def test_random_resized_crop_fills_its_ranges():
    rng = np.random.default_rng(0)
    boxes = np.array([crops.random_resized_crop(rng, 400, 400) for _ in range(3000)])
    area = boxes[:, 2] * boxes[:, 3] / 400**2
    aspect = boxes[:, 3] / boxes[:, 2]
    assert 0.078 < area.min() < 0.09
    assert 0.97 < area.max() <= 1
    assert 0.74 < aspect.min() < 0.76
    assert 1.31 < aspect.max() < 1.35
    assert abs(np.log(aspect).mean()) < 0.02

    # Frames that are too long fall back to the centre.
    assert crops.random_resized_crop(rng, 10, 10000) == (0, 4993, 10, 13)
    assert crops.random_resized_crop(rng, 10000, 10) == (4993, 0, 13, 10)


def test_bilinear_by_hand_and_area_beyond_twofold():
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 1, 3))
    # Bilinear at half size reads the middle of two pixels: 2, 10, 18, ...
    assert crops.resize(ramp, 30, 30)[0, :, 0].tolist() == list(range(2, 242, 8))
    stripes = np.zeros((60, 60, 3), np.uint8)
    stripes[:, ::6] = 240
    assert np.all(crops.resize(stripes, 10, 10) == 40)


def test_a_whole_frame_keeps_its_shape_and_what_is_around_it_is_grey():
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, :5], wide[:, -5:] = (200, 0, 0), (0, 0, 200)  # Somebody at each end.
    square = crops.shrink(wide, 32, "fit")
    assert (np.delete(square, slice(8, 24), 0) == crops.FILL).all()
    np.testing.assert_array_equal(square[8:24], crops.resize(wide, 16, 32))
    assert square[16, [1, 30]].tolist() == [[200, 0, 0], [0, 0, 200]]
    tall = crops.shrink(np.ascontiguousarray(wide.transpose(1, 0, 2)), 32, "fit")
    np.testing.assert_array_equal(tall[:, 8:24], square[8:24].transpose(1, 0, 2))
    # Training, testing and windows place the same pixels at the same position.
    record = Record("a", "", 0, shapes.encode(np.repeat(wide[None], 16, 0), 10))
    spec = ClipSpec(num_frames=4, frame_stride=1, image_size=32, crop="fit")
    trained = loader.clip([record], spec, 0, 0)["video"]
    tested = samples.views_of(spec._replace(sampling="center"), record.data, 2, 3)
    for clip in (*tested, *list(windows.cut(record.data, spec, 4))[1:]):
        np.testing.assert_allclose(clip[0].astype(int), trained[0], atol=8)  # H.264 is lossy.
    assert (trained[:, :8] == crops.FILL).all()
