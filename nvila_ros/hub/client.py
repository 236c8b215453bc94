"""The hub's protocol over HTTP: commits, trees and files, and what its errors mean.

In: a repository's name. Out: checked values and open replies. Redirects are followed here and not by urllib, which
would send the token on to the host that stores the files.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO, Any, TypeVar

from nvila_ros.errors import HubError, shown
from nvila_ros.hub.files import HubFile, read_tree

MAX_REDIRECTS, MAX_PAGES, MAX_JSON_BYTES = 6, 1000, 64 << 20
MAX_TRIES = 5
"""Tries in a row without a byte."""
MAX_WAIT_S = 60.0
BUSY = (408, 425, 429, 500, 502, 503, 504)
REDIRECTS = (301, 302, 303, 307, 308)
NETWORK_ERRORS = (OSError, http.client.HTTPException)
"""What a lost, refused or silent connection raises."""
T = TypeVar("T")


class TransientError(HubError):
    """A failure that may be over soon: a lost connection, a busy server, an expired link."""

    def __init__(self, text: str, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Revision:
    """A commit of a repository.

    Attributes:
        commit: 40 hexadecimal digits.
        licence: as the repository's page tags it; empty if it does not.
    """

    commit: str
    licence: str


@dataclass(slots=True)
class Reply:
    """An open answer of a server.

    Attributes:
        status: of HTTP.
        headers: of the last host, over those that the hub itself sent.
        body: to be read and closed.
    """

    status: int
    headers: dict[str, str]
    body: IO[bytes]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class HubClient:
    """Speaks with one hub; may be used by several threads.

    Attributes:
        endpoint: its address, such as https://huggingface.co.
        token: sent to this host alone; may be empty.
        timeout_s: of a connection that is silent.
        stopped: ends every wait between tries, and with it the work.
    """

    endpoint: str
    token: str = ""
    timeout_s: float = 10.0
    stopped: threading.Event = field(default_factory=threading.Event)
    _opener: urllib.request.OpenerDirector = field(default_factory=lambda: urllib.request.build_opener(_NoRedirect))

    def __post_init__(self) -> None:
        """Check the address and the token."""
        parts = urllib.parse.urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise HubError(f"the endpoint must be like https://huggingface.co, got {shown(self.endpoint)}")
        if not re.fullmatch(r"[!-~]*", self.token):
            raise HubError("the token must be visible ASCII without blanks; see HF_TOKEN and the file of the token")

    def revision(self, repo: str, revision: str = "main") -> Revision:
        """Return the commit that a branch, tag or commit names.

        Raises:
            HubError: the repository or the revision is missing, gated or private, or the hub cannot be reached.
        """
        answer, _ = self._json(self._url("api/models", repo, "revision", urllib.parse.quote(revision, safe="")), repo)
        commit = answer.get("sha") if isinstance(answer, Mapping) else None
        if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40}", commit):
            raise HubError(f"{self.endpoint} names no commit of {repo}, got {shown(commit)}; it is no hub of models")
        card = answer.get("cardData")
        licence = (card.get("license_name") or card.get("license")) if isinstance(card, Mapping) else None
        return Revision(commit, ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence or ""))

    def tree(self, repo: str, commit: str) -> list[HubFile]:
        """Return every file of a commit, with size and digest.

        Raises:
            HubError: the hub cannot be reached, or lists what is not safe to write.
        """
        return read_tree(self._entries(repo, commit))

    def _entries(self, repo: str, commit: str) -> Iterator[Any]:
        url = self._url("api/models", repo, "tree", commit) + "?recursive=true&expand=false"
        for _ in range(MAX_PAGES):
            entries, link = self._json(url, repo)
            if not isinstance(entries, list):
                raise HubError(f"the tree of {repo} must be a list, got {shown(entries)}")
            yield from entries
            found = re.search(r'<([^>]*)>\s*;\s*rel="?next"?', link)
            if not found:
                return
            url = urllib.parse.urljoin(url, found[1])
            if not self._is_own(url):
                raise HubError(f"the tree of {repo} goes on at another host, {shown(url)}; nothing was fetched")
        raise HubError(f"the tree of {repo} has more than {MAX_PAGES} pages, which no checkpoint has")

    def open(self, repo: str, commit: str, file: HubFile, start: int = 0, end: int | None = None) -> Reply:
        """Ask for a file once, from a byte on; a server may ignore the range and answer 200.

        Args:
            repo: owner/name.
            commit: of the repository.
            file: of its tree.
            start: first byte.
            end: last byte; None is the file's last.

        Raises:
            TransientError: it may go better at once or soon.
            HubError: the file is not the one of the tree, or the hub refuses.
        """
        last = "" if end is None else str(end)
        headers = {"Range": f"bytes={start}-{last}"} if start or last else {}
        reply = self._follow(self._url(repo, "resolve", commit, urllib.parse.quote(file.path)), headers, repo)
        etag = reply.headers.get("x-linked-etag") or reply.headers.get("etag", "")
        etag = etag.removeprefix("W/").strip('"')
        is_digest = "x-linked-etag" in reply.headers or re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag)
        if (is_digest and etag != file.hex) or reply.headers.get("x-repo-commit", commit) != commit:
            reply.body.close()
            raise HubError(f"{file.path} of {repo} changed on the hub while it was fetched; run again")
        return reply

    def retry(self, action: Callable[[], T]) -> T:
        """Return what an action gives, which is tried again where that may help.

        Raises:
            HubError: it does not, or not within `MAX_TRIES`.
        """
        for tries in range(1, MAX_TRIES + 1):
            try:
                return action()
            except TransientError as error:
                if tries == MAX_TRIES:
                    raise
                self.wait(tries, error)
        raise AssertionError("the last try returns or raises")

    def wait(self, tries: int, error: TransientError) -> None:
        """Wait after the given number of failures in a row: 1, 2, 4 ... s, or as the server asks."""
        if self.stopped.wait(min(error.wait_s or 2.0 ** (tries - 1), MAX_WAIT_S)):
            raise HubError("the fetch was stopped; run again to go on") from error

    def _json(self, url: str, repo: str) -> tuple[Any, str]:
        """Return a value, and the header that names the next page."""
        return self.retry(lambda: self._json_once(url, repo))

    def _json_once(self, url: str, repo: str) -> tuple[Any, str]:
        reply = self._follow(url, {}, repo)
        with closing(reply.body):
            try:
                data = reply.body.read(MAX_JSON_BYTES + 1)
            except NETWORK_ERRORS as error:
                raise TransientError(f"{self.endpoint} broke off: {error}") from error
        try:
            if len(data) > MAX_JSON_BYTES:
                raise ValueError(f"more than {MAX_JSON_BYTES:,} bytes")
            return json.loads(data), reply.headers.get("link", "")
        except (ValueError, RecursionError) as error:
            raise HubError(
                f"{self.endpoint} answered no JSON about {repo} ({error}); it is no hub of models"
            ) from error

    def _url(self, *parts: str) -> str:
        return "/".join((self.endpoint.rstrip("/"), *parts))

    def _is_own(self, url: str) -> bool:
        mine, theirs = urllib.parse.urlsplit(self.endpoint), urllib.parse.urlsplit(url)
        return (mine.scheme, mine.netloc) == (theirs.scheme, theirs.netloc)

    def _follow(self, url: str, headers: Mapping[str, str], repo: str) -> Reply:
        """Return the answer behind all redirects."""
        known: dict[str, str] = {}
        for _ in range(MAX_REDIRECTS):
            reply = self._ask(url, headers)
            is_own = self._is_own(url)
            # A host that only stores files has ETags of its own, so those of the hub stand.
            own = {key: value for key, value in reply.headers.items() if is_own or key not in ("etag", "x-repo-commit")}
            known = {**known, **own}
            if reply.status not in REDIRECTS:
                if reply.status >= 400 and reply.status != 416:
                    with closing(reply.body):
                        raise self._error(reply, repo, is_own)
                return Reply(reply.status, known, reply.body)
            reply.body.close()
            target = urllib.parse.urljoin(url, reply.headers.get("location", ""))
            scheme = urllib.parse.urlsplit(target).scheme
            if scheme not in ("http", "https") or (url.startswith("https") and scheme != "https"):
                raise HubError(f"{self.endpoint} redirects to {shown(target)}, which is not safe; nothing was fetched")
            url = target
        raise HubError(f"{self.endpoint} redirects more than {MAX_REDIRECTS} times for {repo}")

    def _ask(self, url: str, headers: Mapping[str, str]) -> Reply:
        own = {"User-Agent": "nvila_ros", "Accept-Encoding": "identity", **headers}
        if self.token and self._is_own(url):
            own["Authorization"] = f"Bearer {self.token}"
        try:
            try:
                answer: Any = self._opener.open(urllib.request.Request(url, headers=own), timeout=self.timeout_s)
            except urllib.error.HTTPError as error:
                answer = error  # an answer like any other
        except NETWORK_ERRORS as error:
            host = urllib.parse.urlsplit(url).netloc
            reason = getattr(error, "reason", None) or error
            raise TransientError(
                f"{host} cannot be reached: {reason}; run again, or name another by --endpoint"
            ) from error
        return Reply(answer.status, {key.lower(): value for key, value in answer.headers.items()}, answer)

    def _error(self, reply: Reply, repo: str, is_own: bool) -> HubError:
        """Return what an answer means by its status and the hub's own code."""
        code, page = reply.headers.get("x-error-code", ""), f"{self.endpoint.rstrip('/')}/{repo}"
        if reply.status in BUSY or (not is_own and reply.status in (401, 403, 404, 410)):
            wait = reply.headers.get("retry-after", "")
            text = f"{self.endpoint} is busy (status {reply.status}); what was fetched is kept, so run again later"
            return TransientError(text, float(wait) if re.fullmatch(r"\d{1,6}", wait) else 0.0)
        texts = {
            "GatedRepo": f"{repo} is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account",
            "RepoNotFound": f"{self.endpoint} has no {repo}, or it is private; see the spelling, or set HF_TOKEN",
            "RevisionNotFound": f"{repo} has no such revision; see {page}/tree/main for its branches and commits",
            "EntryNotFound": f"{repo} lists a file that it does not have; run again",
            "DisabledRepo": f"{repo} was disabled by {self.endpoint}",
        }
        if code not in texts and reply.status in (401, 404):
            code = "RepoNotFound"
        said = reply.headers.get("x-error-message", "")
        unknown = f"{self.endpoint} refuses {repo} with status {reply.status}: {shown(said or code)}"
        return HubError(texts.get(code, unknown))
