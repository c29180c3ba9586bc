"""A Hugging Face hub over HTTPS: what a repository holds, and bytes of its files. The only code that opens a connection.

    GET ENDPOINT/api/models/REPO/revision/REVISION    commit, gating, licence
    GET ENDPOINT/api/models/REPO/tree/COMMIT          file names, sizes, hashes; in pages
    GET ENDPOINT/REPO/resolve/COMMIT/NAME             bytes, after redirects
Nothing that it answers is believed before it has the form it must have. The token goes to the hub's own origin only.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from llmcli import __version__, places
from llmcli.errors import AccessDenied, HashMismatch, LlmError, NetworkError, NotFound, UsageError
from llmcli.weights.safetensors import shown

ENDPOINT = "https://huggingface.co"
TIMEOUT = 15.0
"""Seconds without a byte, or with less than SLOWEST, after which a connection is given up."""
SLOWEST = 1024
"""Bytes a second."""
TRIES = 5
"""Attempts without progress before a transfer fails."""
LONGEST_WAIT = 120.0
"""Seconds: a hub that asks for a longer pause (Retry-After) is not waited for."""
MOST_ANSWER = 16 << 20
MOST_PAGES = 100
MOST_REDIRECTS = 5
LONGEST_LICENCE = 80
"""Characters of a licence's name, which is shown."""
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_ETAG = re.compile(r"[0-9a-f]{40,64}")
"""Its form only: what counts is the hash of the bytes."""
_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class Transient(Exception):
    """A fault that may be gone at the next attempt, which comes after `wait` seconds (None: as usual)."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class Patience:
    """Counts the attempts of one transfer, pausing longer each time. Progress makes them new."""

    def __init__(self, what: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self._what, self._sleep, self._tries = what, sleep, 0

    def progressed(self) -> None:
        self._tries = 0

    def again(self, fault: Transient) -> None:
        """Waits before the next attempt. Raises NetworkError where there is none."""
        self._tries += 1
        if self._tries >= TRIES or (fault.wait or 0) > LONGEST_WAIT:
            later = f"in {fault.wait:,.0f} seconds" if fault.wait else "later: what is here already is kept"
            raise NetworkError(self._what, str(fault), f"Check the connection and try again {later}")
        self._sleep(fault.wait if fault.wait is not None else 0.25 * 2**self._tries)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. hash: SHA-256 of a large file (64 digits), git's SHA-1 of a small one (40)."""

    name: str
    size: int
    hash: str


@dataclass(frozen=True)
class Listing:
    """What a commit of a repository holds, files in folders left out."""

    repository: str
    commit: str
    files: Mapping[str, RemoteFile]
    gated: bool = False
    licence: str = ""

    @property
    def access(self) -> str:
        return "gated (this account has access)" if self.gated else "open to all"


class Body:
    """The bytes of an answer, as long as they come at a pace. Close it, or use it in a `with`."""

    def __init__(self, answer: http.client.HTTPResponse, timeout: float) -> None:
        self._answer, self._timeout = answer, timeout
        self.ranged = answer.status == 206
        self._since, self._count = time.monotonic(), 0

    def read(self, most: int) -> bytes:
        """Some bytes, b"" at the end. Raises Transient: a fault, nothing in time, or less than SLOWEST for that long."""
        try:
            data = self._answer.read1(most)
        except (OSError, http.client.HTTPException) as error:
            raise Transient(_reason(error)) from error
        self._count += len(data)
        passed = time.monotonic() - self._since
        if passed > self._timeout:
            if data and self._count < SLOWEST * passed:
                raise Transient(f"less than {SLOWEST} bytes a second came in for {passed:.0f} seconds")
            self._since, self._count = time.monotonic(), 0
        return data

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *error: object) -> None:
        self._answer.close()


class _Request(urllib.request.Request):
    """A request that remembers the answers of the hub itself on the way to another host."""

    hops: list[Any]


class Hub:
    """Answers of one hub. Safe for several threads."""

    def __init__(self, endpoint: str = ENDPOINT, token: str = "", timeout: float = TIMEOUT) -> None:
        self.endpoint = endpoint.rstrip("/")
        if not _safe(self.endpoint):
            raise UsageError(f"HF_ENDPOINT is {shown(endpoint)}", "a hub's address begins with https://", "Correct or unset it")
        self.token, self.timeout = token, timeout
        self.route = self.endpoint + _proxy(self.endpoint)
        """The hub, and the proxy on the way to it, for messages."""
        self._opener = urllib.request.OpenerDirector()  # the usual one also opens files and FTP addresses
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _Redirects(self),
        ):
            self._opener.add_handler(handler)

    @classmethod
    def of_environment(cls) -> Hub:
        """The hub that HF_ENDPOINT names, with the token of HF_TOKEN or of the file that the hub's own tools keep."""
        token = os.environ.get("HF_TOKEN", "").strip()
        if not token:
            path = Path(os.environ.get("HF_TOKEN_PATH") or hf_home() / "token")
            try:
                token = path.read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                token = ""
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            raise UsageError("HF_TOKEN", "it is not a token: it holds spaces or control characters", "Correct or unset it")
        try:
            timeout = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or TIMEOUT)
        except ValueError as error:
            raise UsageError("HF_HUB_DOWNLOAD_TIMEOUT", "it is not a number of seconds", "Correct or unset it") from error
        return cls(os.environ.get("HF_ENDPOINT") or ENDPOINT, token, min(max(timeout, 0.1), 600.0))

    def listing(self, repository: str, revision: str) -> Listing:
        """What `repository` holds at `revision`. Raises NotFound, AccessDenied, NetworkError, HashMismatch (nonsense)."""
        where = f"{self.endpoint}/api/models/{repository}"
        info, _ = self._json(f"{where}/revision/{quote(revision, safe='')}", repository, revision)
        info = info if isinstance(info, dict) else {}
        commit, name = info.get("sha"), info.get("id", repository)
        if not (isinstance(commit, str) and _COMMIT.fullmatch(commit)):
            raise _nonsense(repository, f"the commit {shown(commit)}")
        if not (isinstance(name, str) and re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name, re.ASCII)):
            raise _nonsense(repository, f"the repository {shown(name)}")
        files: dict[str, RemoteFile] = {}
        following: str | None = f"{where}/tree/{commit}"
        for _ in range(MOST_PAGES):
            if following is None:
                break
            page, following = self._json(following, repository, revision)
            for entry in page if isinstance(page, list) else [None]:
                file = _file(entry, repository)
                if file is not None:
                    files[file.name] = file
        if following is not None:
            raise _nonsense(repository, "a list of files without end")
        card = info.get("cardData")
        licence = card.get("license") if isinstance(card, dict) else None
        if not (isinstance(licence, str) and len(licence) <= LONGEST_LICENCE and licence.isprintable()):
            licence = ""
        return Listing(name, commit, files, bool(info.get("gated")), licence)

    def open(self, listing: Listing, file: RemoteFile, first: int = 0, last: int | None = None) -> Body:
        """The answer with bytes first .. last (inclusive) of a file, or the whole file: `Body.ranged` says which.

        Raises Transient, NotFound, AccessDenied, NetworkError, HashMismatch (the hub names another commit, or an impossible hash)."""
        url = f"{self.endpoint}/{listing.repository}/resolve/{listing.commit}/{quote(file.name)}"
        ranged = {} if first == 0 and last is None else {"Range": f"bytes={first}-{'' if last is None else last}"}
        answer, hops = self._get(url, ranged, listing.repository, listing.commit)
        try:
            for headers in hops:
                commit, etag = headers.get("X-Repo-Commit"), headers.get("X-Linked-Etag")
                if commit not in (None, listing.commit):
                    raise _nonsense(listing.repository, f"the commit {shown(commit)} for a file of {listing.commit[:12]}")
                if etag is not None and not _ETAG.fullmatch(etag.removeprefix("W/").strip('"')):
                    raise _nonsense(listing.repository, f"the ETag {shown(etag)} for a file of {file.hash[:12]}")
            if (answer.getheader("Content-Encoding") or "identity") != "identity":
                raise Transient("the hub sends a compressed body that was not asked for")
            if answer.status == 206 and not (answer.getheader("Content-Range") or "").startswith(f"bytes {first}-"):
                raise Transient("the hub sends another part than was asked for")
            return Body(answer, self.timeout)
        except BaseException:
            answer.close()
            raise

    def _json(self, url: str, repository: str, revision: str) -> tuple[Any, str | None]:
        """An answer of the API, and the address of its next page."""
        patience = Patience(self.route)
        while True:
            try:
                answer, _ = self._get(url, {}, repository, revision)
                with Body(answer, self.timeout) as body:
                    raw = bytearray()
                    while data := body.read(1 << 16):
                        raw += data
                        if len(raw) > MOST_ANSWER:
                            raise _nonsense(repository, f"a list of more than {MOST_ANSWER >> 20} MiB")
                    following = re.search(r'<([^>]+)>;\s*rel="next"', answer.getheader("Link") or "")
                try:
                    found = json.loads(raw)
                except (ValueError, RecursionError) as error:
                    raise Transient("the hub's answer is not JSON") from error
                following_url = urljoin(url, following[1]) if following else None
                if following_url and _origin(following_url) != _origin(self.endpoint):
                    raise _nonsense(repository, f"a next page at {shown(following_url)}")
                return found, following_url
            except Transient as fault:
                patience.again(fault)

    def _get(self, url: str, headers: Mapping[str, str], repository: str, revision: str) -> tuple[http.client.HTTPResponse, list[Any]]:
        request = _Request(url, headers={"User-Agent": f"llmcli/{__version__}", "Accept-Encoding": "identity", **headers})
        request.hops = []
        self.authorize(request)
        try:
            answer = self._opener.open(request, timeout=self.timeout)
            assert isinstance(answer, http.client.HTTPResponse)
            if _origin(answer.url) == _origin(self.endpoint):
                request.hops.append(answer.headers)
            return answer, request.hops
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error, repository, revision) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                why = f"its certificate is not valid ({error.reason.verify_message})"
                raise NetworkError(self.route, why, "Check the clock, the proxy and SSL_CERT_FILE") from None
            raise Transient(_reason(error.reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise Transient(_reason(error)) from None

    def authorize(self, request: urllib.request.Request) -> None:
        """Adds the token to a request for the hub's own origin; urllib never carries it along to another address."""
        if self.token and _origin(request.full_url) == _origin(self.endpoint):
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")

    def _refused(self, error: urllib.error.HTTPError, repository: str, revision: str) -> LlmError | Transient:
        """What an error status means."""
        code, kind = error.code, error.headers.get("X-Error-Code", "")
        if code in _AGAIN:
            return Transient(f"the hub answers {code}{' (too many requests)' if code == 429 else ''}", _retry_after(error.headers))
        if kind == "RevisionNotFound":
            return NotFound(f"{repository} has no revision {shown(revision)}", todo="Leave off @REVISION, or take one of the repository's")
        if kind == "EntryNotFound":
            return NotFound(f"{repository} at {revision[:12]} does not have all its files", f"the hub answers {code}", "Try again later")
        if code == 404 or kind == "RepoNotFound":
            return NotFound(f"no repository {shown(repository)} on {self.endpoint}", "or it is private", _private_todo(self.token))
        if code in (401, 403):
            why = "the hub asks for an account that has access" if kind == "GatedRepo" else f"the hub answers {code}"
            token = "check that HF_TOKEN's account has it" if self.token else "set HF_TOKEN to a token of that account"
            return AccessDenied(f"no access to {repository}", why, f"Ask for access at {self.endpoint}/{repository}, then {token}")
        return NetworkError(self.route, f"it answers {code}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https (or, where the hub itself is on this machine, to this machine); the token stays behind."""

    max_redirections = MOST_REDIRECTS

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        hub = self._hub
        if not _safe(newurl) or (newurl.startswith("http:") and hub.endpoint.startswith("https:")):
            fp.close()
            raise NetworkError(hub.endpoint, f"it redirects to {shown(_origin(newurl))}, which is not https")
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        if found is None:
            return None
        if _origin(req.full_url) == _origin(hub.endpoint):
            req.hops.append(headers)
        request = _Request(newurl, headers=found.headers)
        request.hops = req.hops
        hub.authorize(request)
        return request


def offline() -> str:
    """The variable that forbids the network, or ''."""
    truthy = {"1", "true", "yes", "on"}
    return next((name for name in ("LLMCLI_OFFLINE", "HF_HUB_OFFLINE") if os.environ.get(name, "").lower() in truthy), "")


def hf_home() -> Path:
    """The folder of the hub's own tools."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return places.expanded(os.environ.get("HF_HOME") or f"{cache}/huggingface")


def plain(name: str) -> bool:
    """Whether a name can be a file's in a folder of ours and leads nowhere else."""
    return bool(re.fullmatch(r"[\w+ ,()=@-][\w+ .,()=@-]{0,199}", name)) and name.isprintable() and len(name.encode()) <= 220


def _file(entry: Any, repository: str) -> RemoteFile | None:
    """An entry of a tree; None for folders and what is in them. Raises HashMismatch for what cannot be one."""
    if not isinstance(entry, dict) or not isinstance(path := entry.get("path"), str):
        raise _nonsense(repository, "a list that is none of files")
    if len(path) > 1000 or not path.isprintable() or "\\" in path or not all(part.strip(".") for part in path.split("/")):
        raise _nonsense(repository, f"the file name {shown(path)}")
    if entry.get("type") != "file" or not plain(path):
        return None
    lfs = entry.get("lfs")
    size, oid = (lfs.get("size"), lfs.get("oid")) if isinstance(lfs, dict) else (entry.get("size"), entry.get("oid"))
    digits = 64 if isinstance(lfs, dict) else 40
    if not (isinstance(oid, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", oid)):
        raise _nonsense(repository, f"the hash {shown(oid)} for {shown(path)}")
    if type(size) is not int or not 0 <= size < 1 << 50:
        raise _nonsense(repository, f"{shown(size)} bytes for {shown(path)}")
    return RemoteFile(path, size, oid)


def _nonsense(repository: str, what: str) -> HashMismatch:
    return HashMismatch(f"{repository}: the hub's answer is not to be trusted", f"it gives {what}", "Check HF_ENDPOINT and the connection")


def _private_todo(token: str) -> str:
    return "Check the name" if token else "Check the name; for a private repository set HF_TOKEN"


def _origin(url: str) -> str:
    parts = urlsplit(url)
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        port = 0
    return f"{parts.scheme}://{parts.hostname or ''}:{port}"


def _proxy(url: str) -> str:
    """' through the proxy HOST:PORT' where the environment names one for this address; never its password."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return ""
    return f" through the proxy {shown(urlsplit(proxy if '//' in proxy else '//' + proxy).netloc.rpartition('@')[2])}"


def _safe(url: str) -> bool:
    """Whether an address is https, or on this machine."""
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    return bool(parts.hostname) and not parts.username and (parts.scheme == "https" or (parts.scheme == "http" and local))


def _retry_after(headers: Any) -> float | None:
    value = headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"[0-9]{1,6}", value) else None


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
