"""Passes HTTP requests on, and loses the answers that a test names."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class LosesReplies(ThreadingHTTPServer):
    """Passes requests on; of the first ones to a path in `lost`, the answer is dropped."""

    daemon_threads = True

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), Passer)
        self.target = urlsplit(target).netloc
        self.lost = {}
        self.num_lost = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Passer(BaseHTTPRequestHandler):
    def answer(self):
        body = self.body()
        connection = http.client.HTTPConnection(self.server.target, timeout=30)
        own = ("host", "transfer-encoding")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in own}
        connection.request(self.command, self.path, body, headers)
        reply = connection.getresponse()
        content = reply.read()
        for path in self.server.lost:
            if path in self.path and self.server.lost[path] > 0:
                self.server.lost[path] -= 1
                self.server.num_lost += 1
                self.close_connection = True
                return
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.getheader("Content-Type") or "text/plain")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, *_):
        pass
