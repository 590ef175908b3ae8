"""The page of a run: complete, self-contained, escaped, and there even when the run is not."""

import base64
import json
from html.parser import HTMLParser

from mvm.figures import report


class Page(HTMLParser):
    """Collects text, links and images, and checks that tags are closed in order."""

    def __init__(self, path):
        super().__init__()
        self.open, self.text, self.links, self.images = [], "", [], []
        self.source = path.read_text()
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.links += [value for key, value in attrs if key == "href"]
        self.images += [value for key, value in attrs if key == "src"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def run(folder, name, metrics=(), results=None):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"name": name, "task": "pretrain", "optim": {"base_lr": 1.25e-3}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_all_text_is_escaped(tmp_path):
    evil = '<script>alert("&")</script> $title'
    lost = [{"id": evil, "reason": evil}]
    run(tmp_path, evil, [{"step": 1, evil: evil}], {"views": evil, "unreadable": lost})
    run(tmp_path / "a&b", evil)
    summary = {"title": evil, "lines": [evil]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = Page(report.write(tmp_path))
    assert "<script" not in page.source
    assert page.text.count(evil) >= 8
    assert "a&b" in page.text


def test_a_page_shows_the_numbers_of_its_run_and_needs_nothing_outside_itself(tmp_path):
    lost = [{"id": "v7.mp4", "reason": "no video stream"}]
    results = {"top1": 90.46, "top5": 99.125, "num_videos": 638, "views": "5x3"}
    rows = [{"step": 1, "top1": 50.0}, {"step": 7, "loss": 0.375}]
    run(tmp_path, "run", rows, results | {"unreadable": lost})
    (tmp_path / "figures").mkdir()
    for name in ("my_own", "masks"):
        (tmp_path / "figures" / f"{name}.png").write_bytes(name.encode())
    page = Page(report.write(tmp_path))
    expected = ["pretrain", "90.46", "99.12", "638", "5x3", "v7.mp4", "no video stream", "7"]
    for text in [*expected, "0.375", "optim.base_lr", "0.00125", "What the masking chose"]:
        assert text in page.text, text
    head = "data:image/png;base64,"
    images = [base64.b64decode(image.removeprefix(head)) for image in page.images]
    assert images == [b"masks", b"my_own"]
    assert page.links == []
    assert "http" not in page.source
    assert report.write(tmp_path).read_text() == page.source


def test_sub_runs_are_listed_and_linked_where_they_have_a_page(tmp_path):
    """And a directory without a run of its own has a page."""
    report.write(run(tmp_path / "arm 1", "first", [{"step": 7, "loss": 0.25}], {"top1": 61.25}))
    run(tmp_path / "arm 2", "second", [{"step": 9, "loss": 0.125}])
    (tmp_path / "checkpoints").mkdir()
    page = Page(report.write(tmp_path))
    assert page.links == ["arm%201/report.html"]
    for text in ("arm 1", "arm 2", "0.25", "0.125", "61.25"):
        assert text in page.text
    assert "checkpoints" not in page.text
