"""A small Hugging Face hub on the loopback interface: its API and its files, and what may go wrong on the way.

It speaks what huggingface_hub asks for: /api/models/<repo>/refs, /revision/<rev>, /tree/<commit>, and
/<repo>/resolve/<rev>/<file> with HEAD, GET, ETag, X-Repo-Commit and ranges. It announces no Xet storage.
"""

import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from huggingface_hub import close_session, constants

from rare_token_neurons.models import checkpoints, hub as client
from rare_token_neurons.tables import checkpoints as passes

MOST_REQUESTS = 600  # then every answer is 410 Gone: no client goes round and round


@dataclass
class Hub:
    """Repositories: {name: {branch or tag: {file: bytes}}}; `closed`: {name: (status, X-Error-Code)}.

    tags : {name of a repository: its tags}; what else it has are branches.

    busy : list of (piece of path, status, headers), each given as an answer once.
    drop : list of (piece of path, bytes), the connection is cut once after so many bytes of a body.
    log : what was asked, (method, path, Range or "").
    large : bytes from which on a file is in LFS, and its sha256 announced.
    """

    repositories: dict
    closed: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    busy: list = field(default_factory=list)
    drop: list = field(default_factory=list)
    log: list = field(default_factory=list)
    large: int = 100_000

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def files(self, repository, revision):
        """(commit, {file: bytes}) of a branch or commit, or None."""
        found = {commit_of(repository, name): files for name, files in self.repositories[repository].items()}
        commit = revision if revision in found else commit_of(repository, revision)
        return (commit, found[commit]) if commit in found else None

    def asked(self, piece, method="GET"):
        """The ranges of the requests whose path holds `piece`, in order."""
        return [span for verb, path, span in self.log if piece in path and verb == method]


def commit_of(repository, branch):
    """The commit's 40 hexadecimal digits."""
    return hashlib.sha1(f"{repository}@{branch}".encode()).hexdigest()


def taken(items, path):
    """Remove and return the first item whose piece is in the path."""
    for item in items:
        if item[0] in path:
            items.remove(item)
            return item
    return None


class Handler(BaseHTTPRequestHandler):
    """Answers for one Hub."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self):
        """Like GET, without a body."""
        self.do_GET()

    def do_GET(self):
        """Find what is asked for."""
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path, self.headers.get("Range", "")))
        if len(self.hub.log) > MOST_REQUESTS:
            return self.send(410)
        if busy := taken(self.hub.busy, path):
            return self.send(busy[1], headers=busy[2])
        file = re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", path)
        api = re.fullmatch(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>refs|revision|tree)(/(?P<revision>[^/]+))?",
                           path)
        repository = (file or api or {"repo": ""})["repo"]
        if repository in self.hub.closed:
            status, code = self.hub.closed[repository]
            return self.send(status, headers={"X-Error-Code": code})
        if repository not in self.hub.repositories:
            return self.send(404, headers={"X-Error-Code": "RepoNotFound"})
        if api and api["what"] == "refs":
            refs = {"branches": [], "tags": [], "converts": []}
            for name in self.hub.repositories[repository]:
                kind = "tags" if name in self.hub.tags.get(repository, ()) else "branches"
                refs[kind].append({"name": name, "ref": f"refs/{dict(tags='tags', branches='heads')[kind]}/{name}",
                                   "targetCommit": commit_of(repository, name)})
            return self.send_json(refs)
        found = self.hub.files(repository, (file or api)["revision"])
        if found is None:
            return self.send(404, headers={"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if api and api["what"] == "revision":
            return self.send_json({"id": repository, "sha": commit,
                                   "siblings": [{"rfilename": name} for name in files]})
        if api:
            return self.send_json([entry(name, content, self.hub.large) for name, content in files.items()])
        if file["name"] not in files:
            return self.send(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return self.send_file(path, files[file["name"]], commit)

    def send_file(self, path, content, commit):
        """The file from the asked byte on; perhaps the connection ends in the middle."""
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(content, self.hub.large)}"', "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(span[1]) if span else 0
        if span:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        cut = taken(self.hub.drop, path) if self.command == "GET" else None
        self.send(206 if span else 200, content[begin:], headers, cut=cut and cut[1])

    def send_json(self, content):
        """A JSON answer."""
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send(self, status, body=b"", headers=None, cut=None):
        """An answer, whole or cut off after `cut` bytes of its body."""
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | (headers or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            self.close_connection = cut is not None

    def log_message(self, *_):
        """Say nothing."""


def etag(content, large):
    """As the hub gives it: the sha256 of a file in LFS, the git sha1 of a small one."""
    if len(content) >= large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(name, content, large):
    """A file's line in a listing."""
    name_of_content = etag(content, large)
    listed = {"type": "file", "path": name, "size": len(content), "oid": name_of_content[:40]}
    if len(content) >= large:
        listed["lfs"] = {"oid": name_of_content, "size": len(content), "pointerSize": 134}
    return listed


# ---- its only client


def files_of(folder):
    """What a folder holds as a repository does: {file: bytes}."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@contextlib.contextmanager
def connected(hub, folder, monkeypatch):
    """A running hub that huggingface_hub asks, with its cache and our memory of it in a folder."""
    with hub as running:
        at(running.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        monkeypatch.setattr(client, "MEMORY", folder / "memory")
        yield running
    forget()


def at(url, monkeypatch):
    """Let huggingface_hub ask there: what HF_ENDPOINT says when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    forget()


def forget():
    """What a new process would not know."""
    for function in (client.names, client._resolved, checkpoints._on_hub, checkpoints._hub_config,
                     checkpoints._tell_of_second, passes.flagged, passes.with_weights, passes.known_wrong,
                     passes._tell_of_stages):
        function.cache_clear()
