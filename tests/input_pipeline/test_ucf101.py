"""UCF101 from archives on a small server: whole, downloaded once, resumed after trouble."""

import concurrent.futures
import hashlib
import http.server
import io
import time
import zipfile
from collections import Counter

import numpy as np
import pytest
from packing import one_by_one, refused

from input_pipeline import pack, ucf101
from input_pipeline.encode import Options, h264
from input_pipeline.sources import packed
from input_pipeline.ucf101 import Download

NAMES = [
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
    "HandstandPushups/v_HandStandPushups_g01_c01.avi",
    "HandstandPushups/v_HandStandPushups_g08_c01.avi",
]
VIDEOS = [h264(np.full((12 + i, 48, 64, 3), 60 * i, np.uint8), 25, Options()) for i in range(4)]


def archive(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as content:
        content.mkdir(next(iter(files)).split("/")[0])
        for name, one in files.items():
            content.writestr(name, one)
    return data.getvalue()


def archives(videos):
    """Both of UCF101, which spells one class in two ways."""
    inside = [name.split("/")[1].replace("HandStand", "Handstand") for name in NAMES]
    lists = {"classInd": ["1 ApplyEyeMakeup", "2 HandstandPushups"], "testlist01": NAMES[::2]}
    lists["trainlist01"] = [f"{name} 1" for name in NAMES[1::2]]
    texts = {f"lists/{name}.txt": "\r\n".join(rows) for name, rows in lists.items()}
    stored = {f"UCF101/{name}": data for name, data in zip(inside, videos)}
    return {"videos.zip": archive(stored), "splits.zip": archive(texts)}


def downloads(server):
    found = {}
    for name, data in server.files.items():
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        digest = hashlib.sha256(data).hexdigest()
        found[name.removesuffix(".zip")] = Download(url, len(data), digest)
    return found


class Handler(http.server.BaseHTTPRequestHandler):
    """Of `server.files`; `trouble` is what becomes of the videos, `sent` counts bytes by file."""

    def do_GET(self):
        name = self.path.strip("/")
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        data = self.server.files[name][start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.server.trouble and name == "videos.zip":
            self.wfile.write(data[: len(data) // 2])
            time.sleep(5 * (self.server.trouble == "stall"))
            self.close_connection = True
        else:
            self.server.sent[name] += self.wfile.write(data)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running,
    ):
        running.files, running.trouble, running.sent = archives(VIDEOS), "", Counter()
        pool.submit(running.serve_forever, 0.02)
        yield running
        running.shutdown()


def test_the_official_split_with_the_original_bytes(server, tmp_path, monkeypatch):
    server.files = archives([b"no video", *VIDEOS[1:]])
    monkeypatch.setattr(pack, "each", one_by_one)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))  # No folder means that of TFDS.
    folder = ucf101.fetch("", 1, **downloads(server))
    assert folder == str(tmp_path / "ucf101_1")
    assert packed.class_names(folder) == ["ApplyEyeMakeup", "HandstandPushups"]
    for split, expected in (("train", [1, 3]), ("test", [2])):
        records = packed.load(folder, num_classes=2, split=split)
        found = [(record.id, record.label, record.data) for record in records]
        assert found == [(NAMES[i], i // 2, VIDEOS[i]) for i in expected]
    ((_, left_out),) = packed.manifest(folder)["splits"]["test"]["failures"].items()
    assert left_out == [NAMES[0]]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert ucf101.fetch("", 1, **downloads(server)) == folder
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files


@pytest.mark.parametrize(("trouble", "said"), [("cut", "IncompleteRead"), ("stall", "timed out")])
def test_a_bad_connection_is_one_line_and_the_next_call_resumes(
    server, tmp_path, monkeypatch, trouble, said
):
    packing = []
    monkeypatch.setattr(pack, "write", lambda records, folder, split, *_: packing.append(split))
    monkeypatch.setattr(ucf101, "_TIMEOUT", 1.0)
    monkeypatch.setattr(ucf101, "_BLOCK", 1 << 8)
    server.trouble, start = trouble, time.monotonic()
    refused(f"cannot be downloaded.*{said}", ucf101.fetch, str(tmp_path), 1, **downloads(server))
    server.trouble, (size, other) = "", map(len, server.files.values())
    for _ in range(2):  # Nothing is downloaded twice.
        ucf101.fetch(str(tmp_path), 1, **downloads(server))
    assert packing == ["train", "test"] * 2
    wanted = {"videos.zip": size - size // 2 // 256 * 256, "splits.zip": other}
    while server.sent != wanted:  # The server counts after it has sent.
        assert time.monotonic() - start < 60


def test_what_cannot_be_had_is_said_at_once(server, tmp_path):
    real = downloads(server)
    wrong = real["splits"]._replace(sha256="0" * 64)
    nobody = wrong._replace(url="http://127.0.0.1:9/splits.zip")
    for splits, said in ((wrong, "not the file"), (nobody, "ConnectionError.*put the file into")):
        refused(rf"splits\.zip.*{said}", ucf101.fetch, str(tmp_path), 1, real["videos"], splits)
    assert not list(tmp_path.rglob("splits.zip"))
    said = "gs://bucket/data: UCF101 is prepared in a local folder"
    refused(said, ucf101.main, ["gs://bucket/data"])
