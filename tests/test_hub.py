"""Names on the Hugging Face hub, fetched from a server of this process."""

import hashlib
import http.server
import json
import pathlib
import subprocess
import sys
import threading
from typing import Any

import pytest
from param_shapes import classifier, random_params

import mvm
from mvm import convert as command
from mvm.weights import convert, files, hub, huggingface

pytest.importorskip("huggingface_hub")
ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMIT = "a" * 40
LOCAL = "import sys; from mvm.weights import hub; print(hub.local(sys.argv[1]))"
LOAD = """
import mvm, sys
from mvm.runs import Source  # which init_from asks
print(mvm.load(sys.argv[1]).class_names, Source(sys.argv[1]).grid())
"""


def server(root: pathlib.Path, asked: list[str]) -> http.server.ThreadingHTTPServer:
    """A hub of the folders `root/OWNER/NAME`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            parts = self.path.partition("?")[0].strip("/").split("/")
            is_api = parts[:2] == ["api", "models"]
            folder = root.joinpath(*parts[2:4] if is_api else parts[:2])
            file = folder / parts[-1]
            if len(parts) < 4 or not (folder if is_api else file).exists():
                return self.answer(404, b"")
            if not is_api:
                return self.answer(200, file.read_bytes())
            listed = [
                {"type": "file", "path": f.name, "rfilename": f.name, "size": f.stat().st_size}
                | {"oid": hashlib.sha1(f.read_bytes()).hexdigest()}
                for f in sorted(folder.iterdir())
            ]
            found = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": listed}
            return self.answer(200, json.dumps(listed if "tree" in parts else found).encode())

        def answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            headers |= {"X-Error-Code": "RepoNotFound"} if code == 404 else {}
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_name_is_fetched_once_with_no_more_than_is_needed(
    kind: str, tmp_path: pathlib.Path
) -> None:
    folder, names = tmp_path / "hub" / "me" / "model", [f"class {i}" for i in range(7)]
    weights = convert.from_params(random_params(classifier()), (2, 8, 8))
    files.write(tmp_path / "a.safetensors", weights)
    heads = {"model.heads": 4, "data.image_size": 32}
    command.translate(tmp_path / "a.safetensors", folder, "huggingface", heads)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": names}))
    wanted = "model.safetensors"
    if kind == "bin":
        pytest.importorskip("torch")
        wanted = "pytorch_model.bin"
        theirs, _ = huggingface.from_official(weights)
        files.write(folder / "pytorch_model.bin", theirs)
        (folder / "model.safetensors").unlink()
    (folder / "modeling.py").write_text("raise SystemExit('executed')")
    (folder / "training_args.bin").write_text("not wanted")
    asked: list[str] = []
    with server(tmp_path / "hub", asked) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{serving.server_port}"

        def run(code: str, *argv: str, endpoint: str = address) -> subprocess.CompletedProcess[str]:
            env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}
            env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": ""}
            command = [sys.executable, "-c", code, *argv]
            return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

        place = run(LOCAL, "me/model").stdout
        fetched = {line.split("/")[-1] for line in asked if line.startswith("GET /me/")}
        assert fetched == {"config.json", wanted}
        assert {file.name for file in pathlib.Path(place.strip()).iterdir()} == fetched
        if kind == "safetensors":
            done = run(LOAD, "me/model")
            assert done.stdout == f"{tuple(names)} (8, 4, 4)\n", done.stderr
        # Without a network, from the cache.
        assert run(LOCAL, "me/model", endpoint="http://127.0.0.1:9").stdout == place
        said = run(LOCAL, "me/absent").stderr.splitlines()[-1]
        assert "me/absent does not exist and the Hugging Face hub does not give it" in said
        assert len(said) < 120
        # What exists here goes first.
        asked.clear()
        (tmp_path / "me" / "model").mkdir(parents=True)
        assert run(LOCAL, "me/model").stdout == "me/model\n"
        assert not asked
    serving.shutdown()


def test_what_is_no_name_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    (tmp_path / "mine").mkdir()
    for path in ("runs/demo", "mine/absent", "/a/b", "a/b/c", "gs://a/b", "../a", "absent"):
        assert hub.local(path) == path
    with pytest.raises(mvm.UserError, match=r"^a/b does not exist; .* pip install huggingface_hub"):
        hub.local("a/b")
