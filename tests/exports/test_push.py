"""`--push`, against a hub of our own on loopback that speaks the hub's protocol for small files."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clip_distill.exports.push import push


class Hub(BaseHTTPRequestHandler):
    """Takes every file as a regular one."""

    files: dict[str, bytes]
    created: list[dict[str, Any]]
    allowed = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if not self.allowed:
            return self.answer({"error": "no"}, 403)
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self.answer({"url": f"http://{self.headers['Host']}/me/student", "id": "me/student"})
        if self.path == "/api/validate-yaml":  # of a README
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            names = [each["path"] for each in json.loads(body)["files"]]
            return self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            address = f"http://{self.headers['Host']}/me/student/commit/1"
            return self.answer({"commitUrl": address, "commitOid": "1" * 40, "success": True})
        return self.answer({"error": f"not here: {self.path}"}, 404)

    def do_GET(self) -> None:
        info = {"id": "me/student", "sha": "0" * 40, "siblings": [], "private": True, "tags": []}
        self.answer(info)

    def answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    class Own(Hub):
        pass

    Own.files, Own.created = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    yield Own
    server.shutdown()
    server.server_close()


def test_a_folder_is_uploaded_whole_into_a_private_repository(hub: type[Hub], tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/model.onnx").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("card", encoding="utf-8")
    assert push({"": tmp_path}, "me/student").endswith("/me/student")
    (made,) = hub.created
    assert made["name"] == "student" and (made.get("private") or made.get("visibility") == "private")
    assert hub.files == {"onnx/model.onnx": b"weights", "README.md": b"card"}


def test_several_targets_are_folders_of_one_repository(hub: type[Hub], tmp_path: Path) -> None:
    for name in ("rclip", "immich"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "export.json").write_text(name, encoding="utf-8")
    push({name: tmp_path / name for name in ("rclip", "immich")}, "me/student")
    assert hub.files == {"rclip/export.json": b"rclip", "immich/export.json": b"immich"}


def test_a_refusal_says_how_to_log_in(hub: type[Hub], tmp_path: Path) -> None:
    hub.allowed = False
    (tmp_path / "README.md").write_text("card", encoding="utf-8")
    with pytest.raises(ValueError, match="--push me/student: the hub refused: .*403.* Log in with: hf auth login"):
        push({"": tmp_path}, "me/student")
    with pytest.raises(ValueError, match="--push: expected ORG/NAME, found 'student'"):
        push({"": tmp_path}, "student")
