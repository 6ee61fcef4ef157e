"""Servers in this process, since tests never need the network."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar


class Server(http.server.SimpleHTTPRequestHandler):
    """Writes down what it is asked for."""

    asked: ClassVar[list[str]]

    def log_message(self, *_: Any) -> None:
        self.asked.append(self.path)


@contextmanager
def serving(folder: Path | None = None, handler: Any = Server) -> Iterator[str]:
    """The address of a server, which has the files of a folder or answers as its handler does."""
    handler.asked = []
    make = handler if folder is None else functools.partial(handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), make) as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
