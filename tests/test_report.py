"""The page of a run: complete, self-contained, escaped, and there even when the run is not."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from mvm import figures as visualize
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
    config = {"name": name, "task": "pretrain", "optim": {"lr": 1.5e-3, "decay": {"layer": 0.75}}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_an_empty_run_directory_has_a_page(tmp_path):
    path = report.write(tmp_path)
    assert path == tmp_path / "report.html"
    assert "Nothing has been written" in Page(path).text


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run directory .*absent"):
        report.write(tmp_path / "absent")


def test_all_text_is_escaped(tmp_path):
    evil = '<script>alert("&")</script>'
    lost = [{"id": evil, "reason": evil}]
    run(tmp_path, evil, [{"step": 1, evil: evil}], {"views": evil, "unreadable": lost})
    run(tmp_path / "a&b", evil)
    summary = {"title": evil, "lines": [evil], "accuracies": {evil: [50.0]}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = Page(report.write(tmp_path))
    assert "<script" not in page.source
    assert page.text.count(evil) >= 9


def test_the_page_needs_nothing_outside_itself(tmp_path):
    run(tmp_path, "run", [{"step": 1, "loss": 0.5}])
    visualize.accuracies(tmp_path / "figures" / "accuracies.png", {"a": [50.0]})
    (tmp_path / "figures" / "my_own.png").write_bytes(b"not looked into")
    page = Page(report.write(tmp_path))
    assert page.links == []
    assert not re.search(r"https?:|<script|@import|url\(", page.source)
    head = "data:image/png;base64,"
    assert all(image.startswith(head) for image in page.images)
    first, second = (base64.b64decode(image.removeprefix(head)) for image in page.images)
    assert first == (tmp_path / "figures" / "accuracies.png").read_bytes()
    assert second == b"not looked into"
    assert "Accuracy of each arm" in page.text
    assert "my own" in page.text
    assert "prefers-color-scheme:dark" in page.source


def test_last_values_are_the_newest_of_each_key_and_a_cut_line_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "top1": 50.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    assert report.last_values(path) == {"step": 2, "top1": 50.0, "loss": 0.5}
    assert report.last_values(tmp_path / "absent.jsonl") == {}


def test_results_say_out_of_how_many_and_which_are_missing(tmp_path):
    lost = [{"id": "v7.mp4", "reason": "no video stream"}]
    results = {"top1": 90.46, "top5": 99.0, "mean_class": 89.94, "num_videos": 638}
    results |= {"num_unreadable": 1, "views": "5x3", "unreadable": lost}
    text = Page(report.write(run(tmp_path, "run", results=results))).text
    for expected in ("90.5%", "99.0%", "89.9%", "638", "5x3", "v7.mp4", "no video stream"):
        assert expected in text


def test_sub_runs_are_listed_and_linked_where_they_have_a_page(tmp_path):
    run(tmp_path, "all")
    report.write(run(tmp_path / "arm 1", "first", [{"step": 7, "loss": 0.25}], {"top1": 61.25}))
    run(tmp_path / "arm 2", "second", [{"step": 9, "loss": 0.125}])
    (tmp_path / "checkpoints").mkdir()
    page = Page(report.write(tmp_path))
    assert page.links == ["arm%201/report.html"]
    rows = re.findall(r"<tr>(.*?)</tr>", page.source)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    plain = [[re.sub(r"<.*?>", "", cell) for cell in row] for row in cells]
    assert ["first", "arm 1", "pretrain", "7", "0.25", "61.2%"] in plain
    assert ["second", "arm 2", "pretrain", "9", "0.125", ""] in plain
    assert "checkpoints" not in page.text


def test_a_summary_stands_on_top_with_means_by_hand(tmp_path):
    summary = {"title": "The demo", "lines": ["First.", "Second."]}
    summary["accuracies"] = {"masked": [80.0, 90.0], "scratch": []}
    run(tmp_path, "run", [{"step": 3}], {"top1": 1.0})
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = Page(report.write(tmp_path)).text
    places = [text.rindex(word) for word in ("The demo", "First.", "Second.", "85.0%", "1.0%")]
    assert places == sorted(places)
    assert "80.0, 90.0" in text
    assert "no seed yet" in text


def test_the_compute_of_an_arm_stands_beside_its_accuracy(tmp_path):
    arms = {"everest": [57.4], "scratch": [12.5]}
    for compute, shown in (({"everest": 8.477, "scratch": 0.0}, True), ({"scratch": 0.0}, False)):
        summary = {"accuracies": arms, "compute": compute}
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        source = Page(report.write(tmp_path)).source
        assert ("pre-training, TFLOP" in source) == shown
        assert (">8.5<" in source) == shown


def test_the_configuration_is_flat_on_top_and_whole_below(tmp_path):
    page = Page(report.write(run(tmp_path, "run")))
    assert "decay.layer 0.75" in page.text
    whole = re.search(r"<pre>(.*?)</pre>", page.source, re.S).group(1)
    assert json.loads(whole.replace("&quot;", '"'))["optim"]["decay"] == {"layer": 0.75}
    assert report.flat({"a": {"b": 1, "c": None}, "d": "", "e": 0}) == {"a.b": 1, "e": 0}


def test_a_broken_file_is_named(tmp_path):
    run(tmp_path, "run")
    (tmp_path / "results.json").write_text('{"top1": ')
    with pytest.raises(ValueError, match=r"results\.json is not JSON"):
        report.write(tmp_path)
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"results\.json holds a list"):
        report.write(tmp_path)


def test_the_page_is_the_same_every_time(tmp_path):
    run(tmp_path, "run", [{"step": 1, "loss": float("nan")}])
    first = report.write(tmp_path).read_bytes()
    assert report.write(tmp_path).read_bytes() == first
