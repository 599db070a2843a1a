"""Object storage that holds what it is given: as much of S3's HTTP interface as a reader asks."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

CHANGED = "Sat, 21 Nov 2026 10:00:00 GMT", "2026-11-21T10:00:00.000Z"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        fake, parts = self.server.fake, urlsplit(self.path)
        fake.asked.append(f"{self.command} {parts.path}")
        name, query = parts.path.strip("/"), parse_qs(parts.query)
        if "list-type" in query:
            body = fake.listing(name, query.get("prefix", [""])[0], "delimiter" in query)
            self.answer(200, body.encode(), "application/xml")
        elif name not in fake.objects:
            self.answer(404, b"")
        elif fake.broken and self.command == "GET":
            self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        else:
            self.answer(206 if "Range" in self.headers else 200, fake.objects[name])

    def answer(self, status, body, kind="binary/octet-stream"):
        length = len(body)
        if status == 206:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            body = body[int(first) : int(last) + 1]
        self.send_response(status)
        if status == 206:
            end = int(first) + len(body) - 1
            self.send_header("Content-Range", f"bytes {first}-{end}/{length}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        self.send_header("Last-Modified", CHANGED[0])
        self.send_header("ETag", f'"{hash(body)}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


class S3Fake:
    """A real HTTP server, while used as a context; `objects` are bytes by `bucket/key`."""

    def __init__(self, objects):
        self.objects, self.asked, self.broken = dict(objects), [], False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.fake = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def listing(self, bucket, prefix, only_here):
        keys = [name.removeprefix(f"{bucket}/") for name in sorted(self.objects)]
        keys = [key for key in keys if key.startswith(prefix)]
        if only_here:
            keys = [key for key in keys if "/" not in key.removeprefix(prefix)]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{CHANGED[1]}</LastModified>"
            f"<Size>{len(self.objects[f'{bucket}/{key}'])}</Size></Contents>"
            for key in keys
        )
        head = f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(keys)}"
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"{head}</KeyCount><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        )

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
