"""A hub on 127.0.0.1: makes repositories, takes commits and gives files, as `huggingface_hub` asks for it."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_secret"  # noqa: S105 - of this stand-in alone
COMMIT = "c" * 40


def digest(content):
    """What git calls it."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


class Hub(ThreadingHTTPServer):
    """What it holds, and how it is to answer."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repos = {}  # name → {path: bytes}
        self.private = {}
        self.refuses = None  # a status that every request gets
        self.seen = []  # method, path, authorization

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _answer(self, status, content=b"", headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self):
        """The request's path and body, or None if it was answered already."""
        hub, path = self.server, urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.seen.append((self.command, path, self.headers.get("Authorization")))
        if hub.refuses is not None:
            self._answer(hub.refuses, {"error": "as it was told"})
            return None
        return path, body

    def do_POST(self):
        if (begun := self._begin()) is None:
            return
        path, body = begun
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            status = 409 if name in self.server.repos else 200
            self.server.repos.setdefault(name, {})
            self.server.private.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
            self._answer(status, {"url": f"{self.server.url}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            bad = "license: nonsense" in json.loads(body)["content"]
            errors = [{"message": "no such license"}] if bad else []
            self._answer(400 if bad else 200, {"errors": errors, "warnings": []})
        elif "/preupload/" in path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for one in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif "/commit/" in path:
            name = "/".join(path.split("/")[3:5])
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    content = base64.b64decode(row["value"]["content"])
                    self.server.repos[name][row["value"]["path"]] = content
            url = f"{self.server.url}/{name}/commit/{COMMIT}"
            self._answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
        else:
            self._answer(404, {"error": path})

    def do_GET(self):
        if (begun := self._begin()) is None:
            return
        path, _ = begun
        parts = path.strip("/").split("/")
        is_api = parts[0] == "api"
        name = "/".join(parts[2:4] if is_api else parts[:2])
        files = self.server.repos.get(name)
        if files is None:
            self._answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif is_api and "tree" in parts:
            listed = [
                {"type": "file", "path": place, "size": len(content), "oid": digest(content)}
                for place, content in files.items()
            ]
            self._answer(200, listed)
        elif is_api:
            about = {"id": name, "modelId": name, "sha": COMMIT, "private": False}
            self._answer(200, about | {"siblings": [{"rfilename": place} for place in sorted(files)]})
        else:
            place = "/".join(parts[4:])
            if place not in files:
                self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"ETag": f'"{digest(files[place])}"', "X-Repo-Commit": COMMIT}
            self._answer(200, files[place], headers)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls


@contextmanager
def running_hub():
    """A hub that answers from a thread of its own."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
