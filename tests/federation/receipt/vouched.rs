//! What rests on servers that acted in a room while we were away, and are gone with their keys.

use doorstep::protocol::handshake::sign_new_event;

use super::*;

/// What became of the server whose user changed the power levels while we were away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It is gone, and we never heard of it.
    Gone,
    /// The same; that its user was given power we did hear.
    Given,
    /// It is gone, and we knew it: its user has as much power as the room's creator, and the change is signed with another key.
    Known,
    /// It is there and says its keys. The change is signed with another.
    Alive,
}

/// A room that we know as it was, and what happened since.
struct Away {
    scene: Scene,
    other: Peer,
    /// An ordinary member's.
    evil: Peer,
    ghost: SigningKey,
    levels: Pdu,
    message: Pdu,
}

impl Away {
    fn new(version: &str, fate: Fate) -> Self {
        let mut scene = Scene::new(version);
        let evil = resident(&mut scene, "eve");
        let (other, ghost) = (Peer::start(), SigningKey::generate([9; 32], "ghost"));
        other.hide_keys(matches!(fate, Fate::Gone | Fate::Given));
        other.take_transactions();
        let (user, creator) = (other.user("x"), scene.room.creator.clone());
        let mut chain: Vec<Pdu> = scene.room.state.values().cloned().collect();
        let join = scene.join_of(&other, "x");
        let users = match version {
            "12" => json!({ user.as_str(): 100 }),
            _ => json!({ creator.as_str(): 100, user.as_str(): 100 }),
        };
        let given = scene.set_state("m.room.power_levels", "", json!({ "users": users }));
        if fate == Fate::Given {
            // By a fork in which the user has not come in.
            scene.answer_with_state();
            scene.peer.answer_json("/event_auth/", 200, json!({ "auth_chain": objects(&chain) }));
            scene.send("given", &[&given]);
            let known = || scene.state_content("m.room.power_levels", "").expect("there are some");
            wait_until("who has power is known", || known()["users"][user.as_str()] == 100);
            assert!(scene.membership(&user).is_none());
        }
        if matches!(fate, Fate::Known | Fate::Alive) {
            scene.send("before", &[&join, &given]);
            assert!(accepted(&scene, &given));
            other.hide_keys(fate == Fate::Known);
        }
        let (last, content) = (scene.last.clone(), json!({ "users": users, "invite": 10 }));
        let mut levels = scene.event_of(&other, &[&last], &user, ("m.room.power_levels", Some("")), content);
        if matches!(fate, Fate::Known | Fate::Alive) {
            let mut unsigned = levels.to_object();
            unsigned.retain(|key, _| !matches!(key.as_str(), "hashes" | "signatures"));
            levels = sign_new_event(unsigned, other.name(), &ghost, levels.version()).expect("an event");
        }
        scene.last = levels.event_id().clone();
        scene.room.state.insert(("m.room.power_levels".to_owned(), String::new()), levels.clone());
        let message = scene.message("since");
        chain.extend([join, given, levels.clone()]);
        scene.answer_with_state();
        scene.peer.serve_events(&chain, 0);
        scene.peer.answer_json("/event_auth/", 200, json!({ "auth_chain": objects(&chain) }));
        Away { scene, other, evil, ghost, levels, message }
    }

    /// The message comes in, and cannot be taken.
    fn begins(&self) {
        assert_eq!(self.scene.send("since", &[&self.message])[self.message.event_id().as_str()], json!({}));
        assert!(self.scene.status(&self.message).is_none());
        assert_eq!(self.questions(), (0, 0), "it is too early");
    }

    /// How often the creator's server was asked for keys of others, and the ordinary member's.
    fn questions(&self) -> (usize, usize) {
        let asked = |peer: &Peer| peer.asked("/key/v2/query").len();
        (asked(&self.scene.peer), asked(&self.evil))
    }
}

#[test]
fn what_rests_on_a_server_that_is_gone_is_taken_by_the_word_of_who_could_have_done_the_same() {
    for (version, fate) in [("11", Fate::Gone), ("12", Fate::Gone), ("11", Fate::Given)] {
        let mut away = Away::new(version, fate);
        away.scene.peer.vouch_for(away.other.name(), &[away.other.signing_key()]);
        away.evil.vouch_for(away.other.name(), &[&away.ghost]);
        away.begins();
        wait_until("the message is accepted", || {
            away.scene.server.advance(Duration::from_secs(30));
            accepted(&away.scene, &away.message)
        });
        let levels = away.scene.state_content("m.room.power_levels", "").expect("there are some");
        assert_eq!(levels["invite"], 10, "{version} {fate:?}");
        assert_eq!(away.questions().1, 0, "{version}: who has no power is not asked");
        // It is their word about that, not about whatever the server signed.
        let (last, user) = (away.message.event_id().clone(), away.other.user("x"));
        let word = ("m.room.message", None);
        let said = away.scene.event_of(&away.other, &[&last], &user, word, json!({ "body": "x" }));
        away.scene.send("said", &[&said]);
        away.scene.server.advance(Duration::from_secs(600));
        let next = away.scene.message_after(&[&last], &away.scene.room.creator.clone(), "next");
        assert_eq!(away.scene.send("next", &[&next])[next.event_id().as_str()], json!({}));
        assert!(accepted(&away.scene, &next) && away.scene.status(&said).is_none(), "{version}");
    }
}

#[test]
fn nobody_makes_up_what_a_server_that_is_gone_did_who_could_not_do_it_themselves() {
    let away = Away::new("11", Fate::Gone);
    away.scene.peer.answer_json("/key/v2/query", 404, json!({ "errcode": "M_UNRECOGNIZED", "error": "no" }));
    away.evil.vouch_for(away.other.name(), &[away.other.signing_key()]);
    away.begins();
    wait_until("the creator's server was asked again", || {
        away.scene.server.advance(Duration::from_secs(60));
        away.questions().0 > 1
    });
    assert_eq!(away.questions().1, 0);
    assert!(away.scene.status(&away.message).is_none() && away.scene.status(&away.levels).is_none());
}

#[test]
fn nobody_makes_up_what_they_did_who_have_as_much_power_or_are_there() {
    for fate in [Fate::Known, Fate::Alive] {
        let away = Away::new("11", fate);
        away.scene.peer.vouch_for(away.other.name(), &[&away.ghost]);
        away.begins();
        let asked = || away.scene.peer.asked("/event_auth/").len();
        let before = asked();
        wait_until("what it rests on is asked for again and again", || {
            away.scene.server.advance(Duration::from_secs(60));
            asked() > before + 8
        });
        assert_eq!(away.questions(), (0, 0), "{fate:?}");
        assert!(away.scene.status(&away.levels).is_none(), "{fate:?}");
    }
}
