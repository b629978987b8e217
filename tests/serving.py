"""A small HTTP server for tests, of a folder: with ranges or without, with lengths or without."""

import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments, ranges, lengths, asked, **options):
        self.ranges, self.lengths, self.asked = ranges, lengths, asked
        super().__init__(*arguments, **options)

    def log_message(self, *_):
        if self.command == "GET" and isinstance(self.asked, list):
            self.asked.append(self.path)

    def send_header(self, keyword, value):
        if self.lengths or keyword.lower() != "content-length":
            super().send_header(keyword, value)

    def do_GET(self):
        asked = self.headers.get("Range")
        path = self.translate_path(self.path)
        if not asked or not self.ranges:
            super().do_GET()
            return
        with open(path, "rb") as file:  # noqa: PTH123
            data = file.read()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@contextmanager
def served(folder, *, ranges=True, lengths=True, asked=()):
    """Serve a folder on this machine while the block runs; yield its URL. The list ``asked`` gets what is read."""
    handler = partial(_Handler, directory=str(folder), ranges=ranges, lengths=lengths, asked=asked)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
