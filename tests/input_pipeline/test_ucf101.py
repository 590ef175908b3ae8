"""UCF101 from archives on a small server: whole, downloaded once, resumed after trouble."""

import hashlib
import http.server
import io
import threading
import time
import zipfile

import numpy as np
import pytest
from packing import one_by_one

from input_pipeline import pack, ucf101
from input_pipeline.encode import Options, h264
from input_pipeline.sources import packed
from input_pipeline.sources.records import DataError
from input_pipeline.ucf101 import Download

# (name in the lists, name in the archive): the real set spells one class in two ways.
FILES = {
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi": "v_ApplyEyeMakeup_g01_c01.avi",
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi": "v_ApplyEyeMakeup_g08_c01.avi",
    "HandstandPushups/v_HandStandPushups_g01_c01.avi": "v_HandstandPushups_g01_c01.avi",
    "HandstandPushups/v_HandStandPushups_g08_c01.avi": "v_HandstandPushups_g08_c01.avi",
}
NAMES = list(FILES)
CLASSES = ["ApplyEyeMakeup", "HandstandPushups"]
VIDEOS = {
    name: h264(np.full((12 + i, 48, 64, 3), 60 * i, np.uint8), 25, Options())
    for i, name in enumerate(FILES.values())
}


def archive(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as content:
        content.mkdir(next(iter(files)).split("/")[0])
        for name, one in files.items():
            content.writestr(name, one)
    return data.getvalue()


def split_lists():
    lists = {"classInd.txt": "".join(f"{i} {name}\r\n" for i, name in enumerate(CLASSES, 1))}
    for number, train, test in ((1, NAMES[1::2], NAMES[::2]), (2, NAMES[::2], NAMES[1::2])):
        lists[f"trainlist0{number}.txt"] = "".join(f"{name} 1\r\n" for name in train)
        lists[f"testlist0{number}.txt"] = "".join(f"{name}\r\n" for name in test)
    return archive({f"ucfTrainTestlist/{name}": text.encode() for name, text in lists.items()})


class Server(http.server.ThreadingHTTPServer):
    """`act` says what becomes of an answer; `sent` counts bytes by file."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.act, self.sent = files, "send", dict.fromkeys(files, 0)

    def downloads(self):
        base = f"http://127.0.0.1:{self.server_address[1]}"
        return {
            kind: Download(f"{base}/{name}", len(data), hashlib.sha256(data).hexdigest())
            for kind, (name, data) in zip(("videos", "splits"), self.files.items())
        }


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        name = self.path.strip("/")
        if name not in self.server.files:
            self.send_error(404)
            return
        act = self.server.act if name == "videos.zip" else "send"
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        start = 0 if act == "whole" else start
        data = self.server.files[name][start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if act in ("cut", "stall"):
            self.wfile.write(data[: len(data) // 2])
            time.sleep(5 * (act == "stall"))
            self.close_connection = True
        else:
            self.server.sent[name] += self.wfile.write(data)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    videos = {f"UCF101/{name}": data for name, data in VIDEOS.items()}
    with Server({"videos.zip": archive(videos), "splits.zip": split_lists()}) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def no_pack(monkeypatch):
    """Packs nothing: for what happens before."""
    made = []
    monkeypatch.setattr(pack, "write", lambda records, folder, split, *_: made.append(split))
    return made


def test_the_official_split_with_the_original_bytes(server, tmp_path, monkeypatch):
    server.files["videos.zip"] = archive(
        {f"UCF101/{name}": data for name, data in VIDEOS.items()}
        | {f"UCF101/{FILES[NAMES[0]]}": b"no video"}
    )
    monkeypatch.setattr(pack, "each", one_by_one)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))  # No folder means that of TFDS.
    folder = ucf101.fetch("", 1, **server.downloads())
    assert folder == str(tmp_path / "ucf101_1")
    assert packed.class_names(folder) == CLASSES
    for split, expected in (("train", [NAMES[1], NAMES[3]]), ("test", [NAMES[2]])):
        records = packed.load(folder, num_classes=2, split=split)
        assert [record.id for record in records] == expected
        for record in records:
            assert record.data == VIDEOS[FILES[record.id]]
            assert record.label == CLASSES.index(record.id.split("/")[0])
    ((_, left_out),) = packed.manifest(folder)["splits"]["test"]["failures"].items()
    assert left_out == [NAMES[0]]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert ucf101.fetch("", 1, **server.downloads()) == folder
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files


@pytest.mark.parametrize(("act", "said"), [("cut", "IncompleteRead"), ("stall", "timed out")])
def test_a_bad_connection_is_one_line_and_the_next_call_resumes(
    server, tmp_path, monkeypatch, no_pack, act, said
):
    monkeypatch.setattr(ucf101, "_TIMEOUT", 1.0)
    monkeypatch.setattr(ucf101, "_BLOCK", 1 << 8)
    server.act, start = act, time.monotonic()
    with pytest.raises(DataError, match=f"cannot be downloaded.*{said}") as error:
        ucf101.fetch(str(tmp_path), 1, **server.downloads())
    assert "\n" not in str(error.value)
    server.act, server.sent["videos.zip"], size = "send", 0, len(server.files["videos.zip"])
    ucf101.fetch(str(tmp_path), 1, **server.downloads())
    assert no_pack == ["train", "test"]
    wanted = size - size // 2 // 256 * 256
    while server.sent["videos.zip"] != wanted:  # The server counts after it has sent.
        assert time.monotonic() - start < 60


def test_files_there_are_not_downloaded_and_others_are_refused(server, tmp_path, no_pack):
    part, downloads = tmp_path / "downloads" / "videos.zip.part", server.downloads()
    part.parent.mkdir()
    part.write_bytes(b"half")  # A server that sends all of it again.
    server.act = "whole"
    ucf101.fetch(str(tmp_path), 1, **downloads)
    before = dict(server.sent)
    ucf101.fetch(str(tmp_path), 2, **downloads)
    assert server.sent == before
    (part.parent / "videos.zip").write_bytes(b"half of it")  # By hand.
    with pytest.raises(DataError, match="downloads: holds other files than the archives of UCF101"):
        ucf101.fetch(str(tmp_path), 2, **downloads)
    wrong = downloads["splits"]._replace(sha256="0" * 64)
    with pytest.raises(DataError, match=r"splits.zip.*: not the file"):
        ucf101.fetch(str(tmp_path / "b"), 1, downloads["videos"], wrong)
    assert not list((tmp_path / "b").rglob("splits*"))


def test_without_a_network_it_ends_at_once(server, tmp_path):
    downloads = server.downloads()
    for url, reason in (
        ("http://127.0.0.1:9/videos.zip", "ConnectionError"),
        (downloads["videos"].url.replace("videos", "absent"), "HTTPError: 404"),
    ):
        downloads["videos"] = downloads["videos"]._replace(url=url)
        with pytest.raises(DataError, match=rf"\.zip.*{reason}.*put the file into") as error:
            ucf101.fetch(str(tmp_path), 1, **downloads)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="gs://bucket/data: UCF101 is prepared in a local folder"):
        ucf101.main(["gs://bucket/data"])
