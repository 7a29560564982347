"""Stands between the clients and a server's client API: writes down every exchange, and can lose an answer on the way.

The record is a line of JSON an exchange: `method`, `path` as sent, `status`, `request_body` and `response_body` (parsed,
or null where there was none or no JSON).
"""

import asyncio
import json
import threading

import aiohttp
from aiohttp import web
from servers import free_port
from yarl import URL

BODY_BYTES_MAX = 64 << 20
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host", "te"}


def in_background():
    """An event loop that runs for as long as the process does."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def _parsed(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


class Exchanges:
    """The way to one server. `url` is what its clients are told."""

    _loop = None

    def __init__(self, server, record):
        self._server = server
        self._record = open(record, "a", buffering=1)
        self._losses = []
        self._owners = {}  # who is meant by an Authorization
        self._watches = []
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.count = 0
        if Exchanges._loop is None:
            Exchanges._loop = in_background()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)

    def lose_answers(self, part, times, localpart):
        """The next `times` answers to this user's requests whose method and path contain `part` do not arrive. The
        server has done what was asked. Returns a function that tells how many are still to be lost."""
        loss = {"part": part, "left": times, "owner": f"@{localpart}:"}
        self._losses.append(loss)
        return lambda: loss["left"]

    def watch(self, part):
        """A list to which every body of a request is added from now on whose method and path contain `part`."""
        bodies = []
        self._watches.append((part, bodies))
        return bodies

    async def _listen(self):
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=180), connector=aiohttp.TCPConnector(limit=0), auto_decompress=True
        )
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port, backlog=512).start()

    async def _pass_on(self, request):
        sent = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        headers.pop("Accept-Encoding", None)
        address = f"http://127.0.0.1:{self._server.client_port}{request.raw_path}"
        try:
            async with self._session.request(
                request.method, URL(address, encoded=True), data=sent or None, headers=headers, allow_redirects=False
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, OSError):
            # The server is not there: neither is anybody at this address.
            if request.transport:
                request.transport.abort()
            return web.Response(status=502)
        self.count += 1
        self._write(request, sent, answer, content)
        owner = self._owners.get(request.headers.get("Authorization"), "")
        for loss in self._losses:
            is_theirs = owner.startswith(loss["owner"])
            if loss["left"] and is_theirs and loss["part"] in f"{request.method} {request.raw_path}":
                loss["left"] -= 1
                if request.transport:
                    request.transport.abort()
                break
        kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP]
        return web.Response(status=answer.status, body=content, headers=kept)

    def _write(self, request, sent, answer, content):
        exchange = {
            "method": request.method,
            "path": request.raw_path,
            "status": answer.status,
            "request_body": _parsed(sent),
            "response_body": _parsed(content),
        }
        self._record.write(json.dumps(exchange) + "\n")
        told = exchange["response_body"]
        if isinstance(told, dict) and "access_token" in told and "user_id" in told:
            self._owners[f"Bearer {told['access_token']}"] = told["user_id"]
        for part, bodies in self._watches:
            if part in f"{request.method} {request.raw_path}":
                bodies.append(exchange["request_body"])
