"""Flows of rooms that are replaced by rooms of other versions, with a member on the other server who follows."""

import client
import flows
from flows import both_can_talk, demand, flow, invite_and_see, join_and_see, same_state

# Into newer and older versions, over each border where more changes than a number.
UPGRADES = {"5": "9", "9": "10", "11": "12", "12": "11"}
LETS_OLD_MEMBERS_IN = "lets the members of an invite-only room into the one that replaces it"
flows.LACKS["synapse"].add(LETS_OLD_MEMBERS_IN)


def upgrade(host, room, version):
    return host.call("POST", f"/v3/rooms/{room}/upgrade", {"new_version": version})["replacement_room"]


def follow(host, guest, room, new, via):
    """The guest sees where the room has gone, and goes there; both speak in the new room, and it is one room."""
    told = guest.until("the tombstone", lambda: guest.room(room).state.get(("m.room.tombstone", "")))
    demand(told["content"].get("replacement_room") == new, f"the tombstone names another room: {told}")
    demand(told["sender"] == host.id, f"the tombstone is by {told['sender']}")
    join_and_see(host, guest, new, via)
    created = guest.state_content(new, "m.room.create")
    demand(created["predecessor"]["room_id"] == room, f"the new room's predecessor is {created}")
    demand(guest.state_content(new, "m.room.name") == host.state_content(room, "m.room.name"), "the name was lost")
    both_can_talk(host, guest, new)
    same_state(host, guest, new)
    same_state(host, guest, room)


@flow("a public room is upgraded, and the other server's member follows", list(UPGRADES))
def public_room_upgraded(t):
    host, guest, banned = t.host(), t.guest(), t.guest()
    room = host.create_room(t.version, "public")
    join_and_see(host, guest, room, t.via)
    host.ban(room, banned, "not here")
    host.expect_membership(banned, room, "ban")
    new = upgrade(host, room, UPGRADES[t.version])
    follow(host, guest, room, new, t.via)
    host.expect_membership(banned, new, "ban")
    try:
        banned.join(new, t.via)
    except client.Refused as refused:
        # Synapse has another code for what its own users may not.
        demand(refused.status == 403, f"who is banned is refused with {refused}")
    else:
        raise client.Unmet(f"{banned!r} was banned, and came into the new room")


@flow("an invite-only room is upgraded, and its members need no invite", list(UPGRADES), [LETS_OLD_MEMBERS_IN])
def private_room_upgraded(t):
    host, guest, stranger = t.host(), t.guest(), t.guest()
    room = host.create_room(t.version, "invite")
    invite_and_see(host, guest, room)
    join_and_see(host, guest, room)
    new = upgrade(host, room, UPGRADES[t.version])
    stranger.refused(403, "M_FORBIDDEN", "POST", f"/v3/join/{new}", {}, {"server_name": t.via, "via": t.via})
    follow(host, guest, room, new, t.via)


@flow("the guest's server upgrades the room, and the host follows", ["9", "11", "12"])
def upgraded_from_afar(t):
    host, guest = t.host(), t.guest()
    room = host.create_room(t.version, "public")
    join_and_see(host, guest, room, t.via)
    levels = host.state_content(room, "m.room.power_levels")
    # Of a room of version 12 a tombstone takes more than others have: its creator can give it.
    levels["users"] = levels.get("users", {}) | {guest.id: 150 if t.version == "12" else 100}
    host.set_state(room, "m.room.power_levels", levels)
    guest.until("the power", lambda: guest.state_content(room, "m.room.power_levels") == levels)
    new = upgrade(guest, room, UPGRADES[t.version])
    follow(guest, host, room, new, t.guest_server.name)
