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
    /// It is gone, and we knew it: its user had as much power as the creator, and gave it up. The change is signed with another
    /// key, and rests on what was before.
    Resigned,
    /// It is gone, and we never heard of it. Its user has less power than two others. The change is signed with its key.
    Less,
    /// It is gone, and we never heard of it. The change is signed with another key.
    Silent,
}

impl Fate {
    fn is_known(self) -> bool {
        matches!(self, Fate::Known | Fate::Alive | Fate::Resigned)
    }
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
        other.hide_keys(!fate.is_known());
        other.take_transactions();
        let (user, creator, eve) = (other.user("x"), scene.room.creator.clone(), evil.user("eve"));
        let mut chain: Vec<Pdu> = scene.room.state.values().cloned().collect();
        if fate == Fate::Less {
            let users = json!({ creator.as_str(): 100, eve.as_str(): 100 });
            let levels = scene.set_state("m.room.power_levels", "", json!({ "users": users }));
            scene.send("two", &[&levels]);
            chain.push(levels);
        }
        let join = scene.join_of(&other, "x");
        let users = match (version, fate) {
            ("12", _) => json!({ user.as_str(): 100 }),
            (_, Fate::Less) => json!({ creator.as_str(): 100, eve.as_str(): 100, user.as_str(): 50 }),
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
        if fate.is_known() {
            scene.send("before", &[&join, &given]);
            assert!(accepted(&scene, &given));
        }
        if fate == Fate::Resigned {
            let (last, users) = (scene.last.clone(), json!({ creator.as_str(): 100, eve.as_str(): 100 }));
            let kind = ("m.room.power_levels", Some(""));
            let resigned = scene.event_of(&other, &[&last], &user, kind, json!({ "users": users }));
            scene.send("resigned", &[&resigned]);
            assert!(accepted(&scene, &resigned));
        }
        other.hide_keys(fate != Fate::Alive);
        let (last, content) = (scene.last.clone(), json!({ "users": users, "invite": 10 }));
        let mut levels = scene.event_of(&other, &[&last], &user, ("m.room.power_levels", Some("")), content);
        if fate.is_known() || fate == Fate::Silent {
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

    /// How often the creator's server was asked for what something rests on.
    fn attempts(&self) -> usize {
        self.scene.peer.asked("/event_auth/").len()
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
fn nobody_makes_up_what_they_did_who_have_or_had_as_much_power_or_are_there() {
    for fate in [Fate::Known, Fate::Alive, Fate::Resigned] {
        let away = Away::new("11", fate);
        away.scene.peer.vouch_for(away.other.name(), &[&away.ghost]);
        away.begins();
        let before = away.attempts();
        wait_until("what it rests on is asked for again and again", || {
            away.scene.server.advance(Duration::from_secs(60));
            away.attempts() > before + 8
        });
        assert_eq!(away.questions(), (0, 0), "{fate:?}");
        assert!(away.scene.status(&away.levels).is_none(), "{fate:?}");
    }
}

#[test]
fn one_of_two_who_vouch_does_not_keep_the_other_from_it() {
    for liar_is_first in [true, false] {
        let away = Away::new("11", Fate::Less);
        let (one, two) = (&away.scene.peer, &away.evil);
        let other_key_version = away.other.signing_key().key_id().trim_start_matches("ed25519:").to_owned();
        let (liar, other) = if liar_is_first { (one, two) } else { (two, one) };
        liar.vouch_for(away.other.name(), &[&SigningKey::generate([8; 32], &other_key_version)]);
        other.vouch_for(away.other.name(), &[away.other.signing_key()]);
        away.begins();
        wait_until("the message is accepted", || {
            away.scene.server.advance(Duration::from_secs(30));
            accepted(&away.scene, &away.message)
        });
        let levels = away.scene.state_content("m.room.power_levels", "").expect("there are some");
        assert_eq!(levels["invite"], 10, "{liar_is_first}");
    }
}

#[test]
fn a_server_that_is_back_is_asked_itself_before_anybody_vouches_for_it() {
    let mut away = Away::new("11", Fate::Silent);
    away.scene.peer.answer_json("/key/v2/query", 404, json!({ "errcode": "M_UNRECOGNIZED", "error": "no" }));
    away.begins();
    for _ in 0..3 {
        let before = away.attempts();
        wait_until("what it rests on is asked for again", || {
            away.scene.server.advance(Duration::from_secs(150));
            away.attempts() > before
        });
    }
    away.other.hide_keys(false);
    away.scene.peer.vouch_for(away.other.name(), &[&away.ghost, away.other.signing_key()]);
    // One that is pursued at once, while its server is left in peace that was silent a moment ago.
    away.scene.server.advance(Duration::from_secs(61));
    let more = away.scene.message("more");
    away.scene.send("more", &[&more]);
    let before = away.attempts();
    wait_until("what it rests on is asked for again and again", || {
        away.scene.server.advance(Duration::from_secs(60));
        away.attempts() > before + 6
    });
    assert!(away.scene.status(&away.levels).is_none());
}

#[test]
fn however_many_wait_who_may_vouch_is_not_asked_all_the_time() {
    let mut away = Away::new("11", Fate::Gone);
    away.scene.peer.answer_json("/key/v2/query", 404, json!({ "errcode": "M_UNRECOGNIZED", "error": "no" }));
    away.begins();
    wait_until("the creator's server is asked", || {
        away.scene.server.advance(Duration::from_secs(60));
        away.questions().0 > 0
    });
    let before = away.questions().0;
    for n in 0..20 {
        let more = away.scene.message(&format!("more {n}"));
        away.scene.send(&format!("more{n}"), &[&more]);
    }
    let already = away.attempts();
    wait_until("what they rest on is asked for", || {
        away.scene.server.advance(Duration::from_secs(11));
        away.attempts() > already + 11
    });
    let questions = away.questions().0 - before;
    assert!(questions <= 12, "{questions} questions");
}

#[test]
fn who_came_in_by_an_invite_of_a_server_that_is_gone_is_heard() {
    for version in ["11", "12"] {
        hears_dora(version, false);
    }
}

#[test]
fn who_came_in_by_an_invite_of_a_server_that_is_gone_is_heard_by_who_spoke_meanwhile() {
    hears_dora("11", true);
}

/// Dora's server is there, and that of who invited her is gone; the creator's told of neither while we were away. `speaks`:
/// whether alice says something before anybody vouches for the invite.
fn hears_dora(version: &str, speaks: bool) {
    let mut scene = Scene::new(version);
    let (gone, there) = (Peer::start(), Peer::start());
    gone.hide_keys(true);
    gone.take_transactions();
    there.take_transactions();
    let (bob, dora) = (gone.user("bob"), there.user("dora"));
    let mut chain: Vec<Pdu> = scene.room.state.values().cloned().collect();
    chain.push(scene.join_of(&gone, "bob"));
    let (last, member) = (scene.last.clone(), ("m.room.member", Some(dora.as_str())));
    let invite = scene.event_of(&gone, &[&last], &bob, member, json!({ "membership": "invite" }));
    scene.last = invite.event_id().clone();
    scene.room.state.insert(("m.room.member".into(), dora.to_string()), invite.clone());
    chain.extend([invite, scene.join_of(&there, "dora")]);
    scene.answer_with_state();
    scene.peer.serve_events(&chain, 0);
    scene.peer.answer_json("/event_auth/", 200, json!({ "auth_chain": objects(&chain) }));
    scene.peer.vouch_for(gone.name(), &[gone.signing_key()]);
    scene.peer.take_transactions();
    let said = scene.message("of the creator");
    scene.send("1", &[&said]);
    assert!(accepted(&scene, &said) && scene.membership(&dora).is_none());
    let mut texts = vec!["first", "of the creator", "second"];
    let mut last = said.event_id().clone();
    if speaks {
        scene.alice.send(scene.room.id.as_str(), "of alice");
        texts.insert(1, "of alice");
        last = heads(&scene.server, &scene.room).pop().expect("a head");
    }
    let speak = |scene: &mut Scene, last: &EventId, text: &str| {
        let event = scene.event_of(&there, &[last], &dora, ("m.room.message", None), json!({ "body": text }));
        there.send_transaction(scene.server.name(), text, &[&event]);
        event
    };
    let first = speak(&mut scene, &last, "first");
    let second = speak(&mut scene, first.event_id(), "second");
    assert!(scene.status(&first).is_none());
    wait_until("both are heard", || {
        scene.server.advance(Duration::from_secs(30));
        scene.status(&first).is_some() && scene.status(&second).is_some()
    });
    let mut heard = bodies(&scene.alice, scene.room.id.as_str());
    heard.sort_unstable();
    assert_eq!(heard, texts, "{version}");
    assert_eq!(scene.membership(&dora).as_deref(), Some("join"), "{version}");
}
