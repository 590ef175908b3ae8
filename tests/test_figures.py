"""What figures and the page of a run show: visible pixels as they are, numbers, escaped text."""

import base64
import csv
import re
from html import unescape

import numpy as np
from PIL import Image
from test_compare import run

from mvm.figures import report, sheets
from mvm.figures.sheets import Seen
from mvm.types import Grid

GRID = Grid(2, 2, 3)


def found(path, colours, part=slice(None)):
    """Those of the colours that a picture, or a part of its rows, has."""
    pixels = np.unique(np.asarray(Image.open(path))[part, :, :3].reshape(-1, 3), axis=0)
    return {n for n, colour in enumerate(colours) if (pixels == colour).all(1).any()}


def test_sheets_show_visible_pixels_unchanged_and_no_others(tmp_path):
    levels = np.arange(12)  # A clip whose tubelets have one colour each.
    colours = np.stack([20 + 5 * levels, 200 - 9 * levels, 255 - 7 * levels], 1).astype(np.uint8)
    clip = colours.reshape(*GRID, 3).repeat(2, axis=0).repeat(4, axis=1).repeat(4, axis=2)
    seen = Seen(clip[None], GRID, np.array([[0, 8]]), np.array([[1, 2]]))
    seen.draw(tmp_path / "figures" / "masks.png")
    assert found(tmp_path / "figures" / "masks.png", colours) == {0, 8}
    other = seen._replace(visible=np.array([[3, 5]]))
    sheets.masks(tmp_path / "m.png", {"one": seen, "other": other})
    assert found(tmp_path / "m.png", colours) == set(range(12))
    last = slice(int(0.65 * Image.open(tmp_path / "m.png").height), None)
    assert found(tmp_path / "m.png", colours, last) == {3, 5}
    told = seen._replace(predicted=np.zeros((1, 2, 96)), scores=np.arange(12.0)[None])
    sheets.reconstruction(tmp_path / "r.png", told)
    assert found(tmp_path / "r.png", colours) == set(range(12))


def test_a_page_shows_its_run_escapes_all_text_and_needs_nothing_outside_itself(tmp_path):
    evil = '<script>alert("&")</script> $title'
    results = {"top1": 90.46, "top5": 99.125, "num_videos": 638, "views": evil}
    results["unreadable"] = [{"id": evil, "reason": evil}]
    rows = [{"step": 1, "top1": 50.0}, {"step": 7, "loss": 0.375, evil: evil}]
    run(tmp_path, 1.25e-3, rows, results, "pretrain", name=evil)
    with (tmp_path / "predictions.csv").open("w") as file:
        columns = ("video", "label", "top1", "probability1")
        csv.writer(file).writerows([columns, (evil, evil, "b", "0.75")])
    with (tmp_path / "per_class.csv").open("w") as file:
        csv.writer(file).writerows([(evil, "accuracy"), (evil, "0.00")])
    (tmp_path / "figures").mkdir()
    for name in ("my_own", "masks"):
        (tmp_path / "figures" / f"{name}.png").write_bytes(name.encode())
    report.write(tmp_path, {"Runs": "<p>two</p>"})
    source = (tmp_path / "report.html").read_text()
    text = unescape(re.sub("<.*?>", "", source))
    expected = ["90.46 %", "99.12", "638", "0.375", "optim.base_lr", "0.00125", "two"]
    expected += ["command", "commit", "date", "1 of 1", "75 %"]
    assert [said for said in expected if said not in text] == []
    assert "<script" not in source
    assert text.count(evil) >= 11
    images = re.findall('src="data:image/png;base64,([^"]*)', source)
    assert [base64.b64decode(image) for image in images] == [b"masks", b"my_own"]
    assert len(images) == source.count("src=")
    assert "http" not in source
