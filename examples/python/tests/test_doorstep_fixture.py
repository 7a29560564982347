"""The package with a real client, matrix-nio."""

import asyncio
import concurrent.futures
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nio
import pytest

from doorstep_fixture import Doorstep, DoorstepError


def client_of(server, user):
    client = nio.AsyncClient(server.url, user.user_id)
    client.access_token, client.device_id, client.user_id = user.access_token, user.device_id, user.user_id
    return client


async def bodies(client, room, wanted):
    """Syncs until this message is in the room."""
    seen = []
    deadline = time.monotonic() + 30
    while wanted not in seen and time.monotonic() < deadline:
        answer = await client.sync(timeout=2000)
        assert isinstance(answer, nio.SyncResponse), answer
        joined = answer.rooms.join.get(room)
        seen += [event.body for event in joined.timeline.events if hasattr(event, "body")] if joined else []
    assert wanted in seen, seen


def test_a_message_arrives(doorstep):
    alice, bob = doorstep.add_user("alice"), doorstep.add_user("bob", "s3cret")
    assert set(doorstep.users) == {"alice", "bob"}

    async def talk():
        one, other = client_of(doorstep, alice), nio.AsyncClient(doorstep.url, bob.user_id)
        try:
            assert isinstance(await other.login("s3cret"), nio.LoginResponse)
            room = (await one.room_create(visibility=nio.RoomVisibility.public, preset=nio.RoomPreset.public_chat)).room_id
            assert isinstance(await other.join(room), nio.JoinResponse)
            await one.room_send(room, "m.room.message", {"msgtype": "m.text", "body": "ping"})
            await bodies(other, room, "ping")
        finally:
            await one.close()
            await other.close()

    asyncio.run(talk())


def test_servers_federate_and_are_cut_off_from_each_other(doorstep_factory):
    doorstep = doorstep_factory(users=["alice", "bob"], servers=2)
    here, there = doorstep.servers

    async def talk():
        one, other = client_of(here, here.users["alice"]), client_of(there, there.users["bob"])
        try:
            room = (await one.room_create(visibility=nio.RoomVisibility.public, preset=nio.RoomPreset.public_chat)).room_id
            path = f"/_matrix/client/v3/join/{room}?via={here.name}"
            headers = {"Authorization": f"Bearer {there.users['bob'].access_token}"}
            answer = await other.send("POST", path, "{}", headers)
            assert answer.status == 200, await answer.text()
            doorstep.cut(1, there.name)
            await one.room_send(room, "m.room.message", {"msgtype": "m.text", "body": "ping"})
            doorstep.mend(1, 2)
            await bodies(other, room, "ping")
            doorstep.restart()
            await one.room_send(room, "m.room.message", {"msgtype": "m.text", "body": "after it"})
            await bodies(other, room, "after it")
        finally:
            await one.close()
            await other.close()

    asyncio.run(talk())
    trusting = ssl.create_default_context(cadata=doorstep.ca)
    with urllib.request.urlopen(f"{there.federation_url}/_matrix/federation/v1/version", context=trusting) as answer:
        assert b"Doorstep" in answer.read()


def test_a_client_meets_the_faults_that_it_is_to_meet(doorstep):
    alice = doorstep.add_user("alice")

    async def meet():
        client = client_of(doorstep, alice)
        try:
            doorstep.fail("GET", "/joined_rooms", 500)
            assert isinstance(await client.joined_rooms(), nio.JoinedRoomsError)
            # This client waits as long as it is told, and asks again.
            doorstep.limit("GET", "/joined_rooms", 50)
            assert isinstance(await client.joined_rooms(), nio.JoinedRoomsResponse)
        finally:
            await client.close()

    asyncio.run(meet())
    asked = [request["status"] for request in doorstep.requests() if request["path"].endswith("/joined_rooms")]
    assert asked == [500, 429, 200]
    phone = doorstep.login("alice", "PHONE")
    assert (phone.device_id, phone.user_id) == ("PHONE", alice.user_id)


def test_what_cannot_be_done_is_an_error_and_the_fixture_goes_on(doorstep):
    for wrong in (
        lambda: doorstep.add_user("two words"),
        lambda: doorstep.cut(1, 1),
        lambda: doorstep.restart("nobody"),
        lambda: doorstep.login("nobody"),
    ):
        with pytest.raises(DoorstepError):
            wrong()
    doorstep.add_user("alice")
    with pytest.raises(DoorstepError, match="taken"):
        doorstep.add_user("alice")


def test_words_of_commands_are_ordinary_names_and_passwords(doorstep):
    # An administrator in any case.
    doorstep.add_user("first")
    for name, password in (("admin", None), ("on", "2"), ("alice", "admin"), ("bob", "on"), ("forget", "ordinary")):
        user = doorstep.add_user(name, password)
        assert (user.user_id, user.password) == (f"@{name}:{doorstep.name}", password or name)
        assert doorstep.login(name, "on").device_id == "on"
        body = {"type": "m.login.password", "user": name, "password": password or name}
        request = urllib.request.Request(f"{doorstep.url}/_matrix/client/v3/login", json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["user_id"] == user.user_id
        with pytest.raises(urllib.error.HTTPError, match="403"):
            accounts = f"{doorstep.url}/_synapse/admin/v2/users"
            headers = {"Authorization": f"Bearer {user.access_token}"}
            urllib.request.urlopen(urllib.request.Request(accounts, headers=headers))
    doorstep.fail("GET", "on", 500)


def test_servers_have_the_names_that_they_are_given_and_are_as_many(doorstep_factory):
    doorstep = doorstep_factory(names=["a.example", "b.example"])
    assert [server.name for server in doorstep.servers] == ["a.example", "b.example"]


def test_threads_can_share_one(doorstep):
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        names = [f"user{number}" for number in range(40)]
        users = list(threads.map(doorstep.add_user, names))
    assert [user.user_id for user in users] == [f"@{name}:{doorstep.name}" for name in names]


def test_what_was_said_is_there_after_the_end():
    doorstep = Doorstep(users=["alice"]).start()
    with pytest.raises(DoorstepError, match="already"):
        doorstep.start()
    os.kill(doorstep._process.pid, signal.SIGKILL)
    with pytest.raises(DoorstepError, match="status -9"):
        doorstep.restart()
    with pytest.raises(DoorstepError, match="not running"):
        doorstep.restart()
    doorstep.stop()
    assert isinstance(doorstep.log(), str)


def test_why_it_does_not_start_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DoorstepError, match=str(port)):
            Doorstep(port=port).start()
    with pytest.raises(DoorstepError, match="1 to 100"):
        Doorstep(servers=0).start()


def listens(host, port):
    """Whether a server is there. One that ends in this moment resets what it has not accepted yet: it is still going."""
    try:
        socket.create_connection((host, port)).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        pass
    return True


def test_a_test_that_is_killed_takes_its_servers_along():
    script = "from doorstep_fixture import Doorstep; import time; d = Doorstep().start(); print(d.url, d._process.pid, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as test:
        url, server = test.stdout.readline().decode().split()
        host, port = url.removeprefix("http://").split(":")
        socket.create_connection((host, int(port))).close()
        os.kill(test.pid, signal.SIGKILL)
        test.wait()
    deadline = time.monotonic() + 30
    while listens(host, int(port)):
        assert time.monotonic() < deadline, "the server outlived the test that started it"
    left = [path for path in pathlib.Path("/dev/shm").glob(f"doorstep-memory-{server}-*")]
    assert left == []


def test_a_binary_that_there_is_not_is_named_and_where_it_is_looked_for():
    with pytest.raises(DoorstepError, match="/nonexistent cannot be started: .*DOORSTEP"):
        Doorstep(binary="/nonexistent").start()
