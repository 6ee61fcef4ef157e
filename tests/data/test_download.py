"""Downloads over connections that break, from servers that are busy, without ranges or with another file."""

from __future__ import annotations

import http.server
from collections.abc import Callable, Iterator

import pytest

from kitae.data import download
from kitae.data.download import DownloadError, chunks
from tests.data.servers import Server, serving

CONTENT = bytes(range(256)) * 1024  # four chunks
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Site:
    """A server that gives its answers one after the other, the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.ranges: list[str | None] = []
        self.url = ""


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the download waited; it does not really wait."""
    found: list[float] = []
    monkeypatch.setattr("kitae.data.download.time.sleep", found.append)
    monkeypatch.setattr(download, "_answered", set())
    return found


@pytest.fixture
def site(waits: list[float]) -> Iterator[Site]:
    made = Site()

    class Handler(Server):
        def do_GET(self) -> None:  # noqa: N802
            made.ranges.append(self.headers.get("Range"))
            answer = made.answers[0] if len(made.answers) == 1 else made.answers.pop(0)
            answer(self)

    with serving(handler=Handler) as address:
        made.url = f"{address}/file"
        yield made


def gives(upto: int = len(CONTENT), *, ranges: bool = True, date: str = "Mon, 02 Nov 2026 00:00:00 GMT") -> Answer:
    """The file from the byte that is asked for, broken off before byte `upto`."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and ranges else 0
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.send_header("Content-Length", str(len(CONTENT) - start))
        handler.send_header("Last-Modified", date)
        handler.end_headers()
        handler.wfile.write(CONTENT[start:upto])

    return answer


def says(status: int) -> Answer:
    return lambda handler: handler.send_error(status)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_opened_where_it_broke(site: Site, waits: list[float], ranges: bool) -> None:
    site.answers = [gives(100), gives(100_000, ranges=ranges), gives(ranges=ranges)]
    assert b"".join(chunks(site.url)) == CONTENT
    assert site.ranges == [None, "bytes=100-", "bytes=100000-"]
    assert waits == [1.0, 1.0], "it waits longer only where nothing came"


def test_a_server_may_leave_out_the_length(site: Site, waits: list[float]) -> None:
    def interrupted(handler: http.server.BaseHTTPRequestHandler) -> None:
        """Broken off within a chunk, which is noticed without a length too."""
        handler.protocol_version = "HTTP/1.1"  # of chunks
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.send_header("Last-Modified", "Mon, 02 Nov 2026 00:00:00 GMT")
        handler.end_headers()
        handler.wfile.write(b"64\r\n" + CONTENT[:100] + b"\r\n3e8\r\n" + CONTENT[100:600])

    site.answers = [interrupted, gives()]
    assert b"".join(chunks(site.url)) == CONTENT
    assert len(waits) == 1


def test_a_busy_server_is_asked_again_and_not_for_ever(site: Site, waits: list[float]) -> None:
    site.answers = [says(503), says(429), gives()]
    assert b"".join(chunks(site.url)) == CONTENT
    assert waits == [1.0, 2.0]
    site.answers = [says(503)]
    with pytest.raises(DownloadError, match="503"):
        list(chunks(site.url))
    assert waits == [1.0, 2.0, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("status", [401, 403, 404, 410, 501])
def test_what_will_not_change_is_told_at_once(site: Site, waits: list[float], status: int) -> None:
    site.answers = [says(status)]
    with pytest.raises(DownloadError, match=str(status)):
        list(chunks(site.url))
    assert not waits


def test_a_file_that_changes_meanwhile_is_not_mixed(site: Site, waits: list[float]) -> None:
    site.answers = [gives(100), gives(date="Tue, 03 Nov 2026 00:00:00 GMT")]
    with pytest.raises(DownloadError, match="it changed while it was downloaded"):
        list(chunks(site.url))
    assert waits == [1.0]


def test_a_host_is_asked_again_only_if_it_has_answered(site: Site, waits: list[float]) -> None:
    with pytest.raises(DownloadError, match="refused"):
        list(chunks("http://127.0.0.1:1/file"))
    assert not waits

    def hangs_up(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.close_connection = True

    site.answers = [hangs_up, gives()]
    with pytest.raises(DownloadError, match="closed connection without response"):
        list(chunks(site.url))
    assert b"".join(chunks(site.url)) == CONTENT
    site.answers = [hangs_up, gives()]
    assert b"".join(chunks(site.url)) == CONTENT
    assert waits == [1.0]
