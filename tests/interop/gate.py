"""A gate before a server's federation port, which can hold a chosen request at a chosen moment.

At first it passes bytes through untouched, so that the servers' own TLS is what meets. Once told to inspect, it ends
TLS itself (the certificate is the same) and can stop a request before the server sees it, or an answer after the server
gave it: the moments at which the other side is then killed. It can also leave chosen servers without any answer, as if
the network between them and this one were cut.
"""

import collections
import http.client
import re
import socket
import ssl
import threading
import urllib.parse

HELD_SECONDS = 120  # a forgotten hold ends by itself


class Hold:
    """One request to be stopped: `before` the server sees it, or `after` it was answered."""

    def __init__(self, part, room, when):
        self.part = part
        self.room = room
        self.when = when
        self.taken = False
        self._reached = threading.Event()
        self._ended = threading.Event()

    def wait(self, seconds=60):
        """Waits until the request is there and stopped."""
        if not self._reached.wait(seconds):
            raise TimeoutError(f"no {self.part} for {self.room} came to the gate within {seconds} s")

    def drop(self):
        """Ends the hold: the connection is closed without an answer."""
        self._ended.set()

    def stop_here(self):
        self._reached.set()
        self._ended.wait(HELD_SECONDS)


class Gate:
    def __init__(self, public_port, server_port, authority, inspecting=False):
        self._server_port = server_port
        self._authority = authority
        self._lock = threading.Lock()
        self._holds = []
        self._cut_off = set()
        self._answered = collections.Counter()
        self._passing = set()
        self.inspecting = inspecting
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(authority.certificate, authority.key)
        self._listener = socket.create_server(("127.0.0.1", public_port), backlog=128)
        threading.Thread(target=self._accept, daemon=True).start()

    def inspect(self):
        """From now on every request is looked at. Connections from before are closed, so nothing passes unseen."""
        with self._lock:
            self.inspecting = True
            passing, self._passing = self._passing, set()
        for connection in passing:
            _close(connection)

    def hold(self, part, room, when):
        """The next request whose path has `/part/` and speaks of `room` (or whose path has no room) is stopped."""
        hold = Hold(part, room, when)
        with self._lock:
            self._holds.append(hold)
        return hold

    def cut_off(self, names):
        """From now on the servers of these names get no answer to what they sign. For gates that inspect; what has
        passed already is answered."""
        with self._lock:
            self._cut_off |= set(names)

    def let_in(self, names):
        """Ends it."""
        with self._lock:
            self._cut_off -= set(names)

    def answers(self, part):
        """How often requests whose path has `part` were answered with 200 since the gate began to inspect."""
        with self._lock:
            return self._answered[part]

    def close(self):
        _close(self._listener)
        for hold in self._holds:
            hold.drop()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            serve = self._inspect if self.inspecting else self._pass
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    def _pass(self, near):
        try:
            far = socket.create_connection(("127.0.0.1", self._server_port))
        except OSError:
            _close(near)
            return
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._passing |= {near, far}
        threading.Thread(target=_copy, args=(near, far), daemon=True).start()
        _copy(far, near)

    def _inspect(self, raw):
        try:
            raw.settimeout(HELD_SECONDS)
            connection = self._tls.wrap_socket(raw, server_side=True)
        except OSError:
            _close(raw)
            return
        try:
            reader = connection.makefile("rb")
            while self._one_request(reader, connection):
                pass
        except (OSError, http.client.HTTPException):
            pass  # one of the two sides has gone: that is what this run is about
        finally:
            _close(connection)

    def _one_request(self, reader, connection):
        """Passes one request and its answer on. False when the connection is to end."""
        line = reader.readline(65536).decode("latin-1").split()
        if len(line) != 3:
            return False
        method, path, _ = line
        headers = http.client.parse_headers(reader)
        body = _body(reader, headers)
        if _origin(headers) in self._cut_off:
            return False
        hold = self._match(path)
        if hold and hold.when == "before":
            hold.stop_here()
            return False
        status, reason, answer_headers, answer = self._forward(method, path, headers, body)
        if status == 200:
            with self._lock:
                self._answered.update(path.split("?")[0].split("/")[4:5])
        if hold:
            hold.stop_here()
            return False
        head = f"HTTP/1.1 {status} {reason}\r\n"
        for name, value in answer_headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                head += f"{name}: {value}\r\n"
        connection.sendall(f"{head}Content-Length: {len(answer)}\r\n\r\n".encode("latin-1") + answer)
        return headers.get("Connection", "").lower() != "close"

    def _match(self, path):
        plain = urllib.parse.unquote(path)
        with self._lock:
            for hold in self._holds:
                if not hold.taken and f"/{hold.part}/" in plain and hold.room in plain:
                    hold.taken = True
                    return hold
        return None

    def _forward(self, method, path, headers, body):
        trusting = ssl.create_default_context(cafile=self._authority.ca)
        server = http.client.HTTPSConnection("localhost", self._server_port, context=trusting, timeout=HELD_SECONDS)
        try:
            server.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "expect"):
                    server.putheader(name, value)
            if body is not None:
                server.putheader("Content-Length", str(len(body)))
            server.endheaders(body)
            answer = server.getresponse()
            return answer.status, answer.reason, answer.getheaders(), answer.read()
        finally:
            server.close()


def _origin(headers):
    """The name of the server that signed a request."""
    found = re.search(r'\borigin="?([^",]+)', headers.get("Authorization", ""))
    return found and found[1]


def _body(reader, headers):
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        parts = []
        while size := int(reader.readline(1024).split(b";")[0], 16):
            parts.append(reader.read(size))
            reader.readline(16)
        while reader.readline(65536).strip():
            pass
        return b"".join(parts)
    if "Content-Length" in headers:
        return reader.read(int(headers["Content-Length"]))
    return None


def _copy(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    _close(source)
    _close(sink)


def _close(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()
