//! Sessions proved stage by stage, repeated, lost, refused and too many.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use super::sessions::{SAID_BYTES_BY_ALL_MAX, SAID_BYTES_MAX, SESSIONS_MAX};
use super::*;
use crate::config::Config;
use crate::protocol::ServerName;
use crate::service::Homeserver;

const PASSWORD: &[&[Stage]] = &[&[Stage::Password]];
const DUMMY: &[&[Stage]] = &[&[Stage::Dummy]];
const TOKEN: &[&[Stage]] = &[&[Stage::RegistrationToken, Stage::Dummy]];
const NAME: &str = "test";

fn homeserver() -> Arc<Homeserver> {
    crate::testing::secluded(Config::for_name(ServerName::parse("example.org").unwrap()))
}

fn client(user: Option<&UserId>) -> UiaClient<'_> {
    UiaClient { user, token: None, ended: false, from: Ipv4Addr::LOCALHOST.into() }
}

/// One request; what is done is to say what was asked for and what was proved.
fn request(
    hs: &Homeserver,
    name: &'static str,
    flows: &'static [&'static [Stage]],
    user: Option<&UserId>,
    body: Value,
) -> Result<AuthOutcome> {
    let action = GuardedAction { name, flows, incidental: &["note"], fixed: &[] };
    let Value::Object(body) = body else { panic!("no object") };
    let read = |params: &Map<String, Value>| Ok(params.clone());
    hs.accounts().interactively(&action, client(user), body, read, |params, proof| {
        let user = proof.password.as_ref().map(|proof| proof.user());
        Ok(json!({ "params": params, "user": user, "token": proof.registration_token }))
    })
}

fn step(
    hs: &Homeserver,
    flows: &'static [&'static [Stage]],
    user: Option<&UserId>,
    auth: Value,
) -> AuthOutcome {
    request(hs, NAME, flows, user, json!({ "auth": auth })).unwrap()
}

#[track_caller]
fn asked(told: AuthOutcome) -> Value {
    match told {
        AuthOutcome::Ask(body) => body,
        AuthOutcome::Done(answer) => panic!("done: {answer}"),
    }
}

#[track_caller]
fn done(told: AuthOutcome) -> Value {
    match told {
        AuthOutcome::Done(answer) => serde_json::from_str(&answer).unwrap(),
        AuthOutcome::Ask(body) => panic!("asked: {body}"),
    }
}

#[test]
fn nothing_succeeds_without_auth_not_even_where_nothing_is_asked() {
    let hs = homeserver();
    let body = asked(step(&hs, DUMMY, None, Value::Null));
    assert_eq!(body["flows"], json!([{ "stages": ["m.login.dummy"] }]));
    done(step(&hs, DUMMY, None, json!({ "type": "m.login.dummy", "session": body["session"] })));
}

#[test]
fn stages_are_taken_in_order_and_a_complete_one_is_not_taken_again() {
    let hs = homeserver();
    hs.accounts().add_registration_token("let-me-in", Some(1), None).unwrap();
    let session = asked(step(&hs, TOKEN, None, Value::Null))["session"].clone();
    let auth = |stage: &str| json!({ "type": stage, "token": "let-me-in", "session": session });
    let body = asked(step(&hs, TOKEN, None, auth("m.login.dummy")));
    assert_eq!(body["errcode"], "M_UNRECOGNIZED");
    let wrong = json!({ "type": "m.login.registration_token", "token": "wrong", "session": session });
    assert_eq!(asked(step(&hs, TOKEN, None, wrong))["errcode"], "M_UNAUTHORIZED");
    for _ in 0..2 {
        let body = asked(step(&hs, TOKEN, None, auth("m.login.registration_token")));
        assert_eq!(body["completed"], json!(["m.login.registration_token"]));
        assert_eq!(body.get("errcode"), None);
    }
    assert_eq!(done(step(&hs, TOKEN, None, auth("m.login.dummy")))["token"], "let-me-in");
    // The stages are complete: any repeat has the answer.
    for stage in ["m.login.dummy", "m.login.registration_token"] {
        assert_eq!(done(step(&hs, TOKEN, None, auth(stage)))["token"], "let-me-in");
    }
    assert_eq!(done(step(&hs, TOKEN, None, json!({ "session": session })))["token"], "let-me-in");
}

#[test]
fn a_password_proves_only_the_account_that_the_request_is_about() {
    let hs = homeserver();
    let (alice, _) = hs.accounts().register_user("alice", Some("open sesame")).unwrap();
    hs.accounts().register_user("eve", Some("mine")).unwrap();
    let auth = |user: &str, password: &str| {
        json!({ "type": "m.login.password", "password": password,
                "identifier": { "type": "m.id.user", "user": user } })
    };
    for (user, password) in [("alice", "wrong"), ("eve", "mine"), ("@alice:elsewhere", "open sesame")] {
        let body = asked(step(&hs, PASSWORD, Some(&alice), auth(user, password)));
        assert_eq!(body["errcode"], "M_FORBIDDEN", "{user}");
    }
    for user in ["alice", "@alice:example.org", "Alice", "@ALICE:Example.ORG"] {
        let answer = done(step(&hs, PASSWORD, Some(&alice), auth(user, "open sesame")));
        assert_eq!(answer["user"], alice.as_str(), "{user}");
    }
    let bare = json!({ "type": "m.login.password", "password": "open sesame" });
    done(step(&hs, PASSWORD, Some(&alice), bare.clone()));
    asked(step(&hs, PASSWORD, None, bare));
}

#[test]
fn a_session_is_good_for_its_own_purpose_and_for_half_an_hour() {
    let hs = homeserver();
    let (alice, _) = hs.accounts().register_user("alice", None).unwrap();
    let session = asked(step(&hs, DUMMY, None, Value::Null))["session"].clone();
    let body = json!({ "auth": { "type": "m.login.dummy", "session": session } });
    for (name, user) in [("other", None), (NAME, Some(&alice))] {
        let other = asked(request(&hs, name, DUMMY, user, body.clone()).unwrap());
        assert_ne!(other["session"], session);
        assert_eq!(other.get("completed"), None, "{other}");
    }
    hs.clock.advance(Duration::from_secs(1800));
    let late = asked(request(&hs, NAME, DUMMY, None, body).unwrap());
    assert_ne!(late["session"], session);
}

#[test]
fn one_session_does_one_thing_however_many_requests_prove_it_at_once() {
    let hs = homeserver();
    let session = asked(step(&hs, DUMMY, None, Value::Null))["session"].clone();
    let (deeds, action) =
        (AtomicUsize::new(0), GuardedAction { name: NAME, flows: DUMMY, incidental: &[], fixed: &[] });
    let gate = std::sync::Barrier::new(16);
    let answers: Vec<(usize, AuthOutcome)> = std::thread::scope(|scope| {
        let send = |n: usize| {
            let auth = json!({ "type": "m.login.dummy", "session": session });
            let Value::Object(body) = json!({ "name": n % 2, "auth": auth }) else { panic!() };
            gate.wait();
            let read = |params: &Map<String, Value>| Ok(params["name"].clone());
            let told = hs.accounts().interactively(&action, client(None), body, read, |name, _| {
                deeds.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
                Ok(name)
            });
            (n % 2, told.unwrap())
        };
        let threads: Vec<_> = (0..16).map(|n| scope.spawn(move || send(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(deeds.load(Ordering::SeqCst), 1);
    let winner =
        answers.iter().find_map(|(n, told)| matches!(told, AuthOutcome::Done(_)).then_some(*n)).unwrap();
    for (n, told) in answers {
        match told {
            // Who asked for the same is told what came of it, and whoever asked for something else is not.
            AuthOutcome::Done(answer) => assert_eq!((n, answer), (winner, winner.to_string())),
            AuthOutcome::Ask(_) => assert_ne!(n, winner),
        }
    }
}

#[test]
fn what_earlier_requests_said_counts_where_a_later_one_leaves_it_out() {
    let hs = homeserver();
    hs.accounts().add_registration_token("let-me-in", None, None).unwrap();
    let send = |body: Value| request(&hs, NAME, TOKEN, None, body).unwrap();
    let session = asked(send(json!({ "name": "a", "secret": "s" })))["session"].clone();
    let token = json!({ "type": "m.login.registration_token", "token": "let-me-in", "session": session });
    asked(send(json!({ "name": "b", "more": 1, "secret": null, "auth": token })));
    let answer = done(send(json!({ "auth": { "type": "m.login.dummy", "session": session } })));
    assert_eq!(answer["params"], json!({ "name": "b", "secret": "s", "more": 1 }));
    // Too much to be remembered has to be said again.
    let session = asked(send(json!({ "name": "x".repeat(SAID_BYTES_MAX) })))["session"].clone();
    let token = json!({ "type": "m.login.registration_token", "token": "let-me-in", "session": session });
    asked(send(json!({ "auth": token })));
    let answer = done(send(json!({ "auth": { "type": "m.login.dummy", "session": session } })));
    assert_eq!(answer["params"], json!({}));
}

#[test]
fn a_lost_answer_is_given_again_to_who_asks_for_the_same_and_for_ten_minutes() {
    let hs = homeserver();
    let session = asked(step(&hs, DUMMY, None, Value::Null))["session"].clone();
    let auth = json!({ "type": "m.login.dummy", "session": session });
    let send = |body: Value| request(&hs, NAME, DUMMY, None, body).unwrap();
    let first = done(send(json!({ "name": "a", "auth": auth })));
    for body in [
        json!({ "name": "a", "auth": auth }),
        json!({ "auth": auth }),
        json!({ "auth": { "session": session } }),
        json!({ "name": "a", "note": "changed", "auth": auth }),
    ] {
        assert_eq!(done(send(body)), first);
    }
    for body in [json!({ "name": "b", "auth": auth }), json!({ "name": "a", "more": 1, "auth": auth })] {
        asked(send(body));
    }
    hs.clock.advance(Duration::from_secs(600));
    asked(send(json!({ "name": "a", "auth": auth })));
}

#[test]
fn a_session_in_which_a_stage_is_complete_is_good_for_what_it_was_completed_for() {
    const TOKEN_TEXT: &str = "let-me-in";
    let hs = homeserver();
    hs.accounts().add_registration_token(TOKEN_TEXT, None, None).unwrap();
    let action = GuardedAction { name: NAME, flows: TOKEN, incidental: &[], fixed: &["what", "how"] };
    let send = |mut body: Value, session: &Value, stage: &str| {
        if !session.is_null() {
            body["auth"] = json!({ "type": stage, "token": TOKEN_TEXT, "session": session });
        }
        let Value::Object(body) = body else { panic!("no object") };
        let read = |params: &Map<String, Value>| Ok(params.clone());
        let deed = |params: Map<String, Value>, _: &Proof| match params.get("what") {
            Some(what) if what == "weak" => Err(Error::new(ErrCode::WeakPassword, "weak")),
            _ => Ok(json!(params)),
        };
        hs.accounts().interactively(&action, client(None), body, read, deed)
    };
    let token = "m.login.registration_token";
    let begin = |body: Value| asked(send(body, &Value::Null, "").unwrap())["session"].clone();
    // Nothing was proved: what is to be done can be another thing, which is proved with it.
    let session = begin(json!({ "what": "a", "note": 1 }));
    let body = asked(send(json!({ "what": "b", "how": "well" }), &session, token).unwrap());
    assert_eq!((&body["session"], &body["completed"]), (&session, &json!([token])));
    for other in [
        json!({ "what": "a" }),
        json!({ "what": "a", "how": "well" }),
        json!({ "what": "b", "how": "badly" }),
        json!({ "what": ["b"] }),
    ] {
        let body = asked(send(other.clone(), &session, "m.login.dummy").unwrap());
        assert_eq!(body.get("completed"), None, "{other}");
        assert_ne!(body["session"], session, "{other}");
    }
    // What it leaves out is what it was; what nothing depends on may change.
    let answer = done(send(json!({ "what": "b", "note": 2 }), &session, "m.login.dummy").unwrap());
    assert_eq!((&answer["what"], &answer["how"], &answer["note"]), (&json!("b"), &json!("well"), &json!(2)));
    // What was refused can be mended once, and then it is that.
    let session = begin(json!({ "what": "weak" }));
    asked(send(json!({}), &session, token).unwrap());
    assert!(send(json!({}), &session, "m.login.dummy").is_err());
    assert_eq!(done(send(json!({ "what": "better" }), &session, "m.login.dummy").unwrap())["what"], "better");
    // Too much to be remembered: what was proved for is known all the same.
    let long = "x".repeat(SAID_BYTES_MAX);
    let session = begin(json!({ "what": long }));
    asked(send(json!({ "what": long }), &session, token).unwrap());
    for other in [json!({ "what": "y" }), json!({})] {
        assert_ne!(asked(send(other, &session, "m.login.dummy").unwrap())["session"], session);
    }
    assert_eq!(done(send(json!({ "what": long }), &session, "m.login.dummy").unwrap())["what"], long);
}

#[test]
fn what_failed_for_the_clients_own_fault_may_be_tried_again_and_what_broke_may_not() {
    let hs = homeserver();
    let action = GuardedAction { name: NAME, flows: DUMMY, incidental: &[], fixed: &[] };
    let send = |auth: &Value, outcome: Result<Value>| {
        let body = Map::from_iter([("auth".to_owned(), auth.clone())]);
        hs.accounts().interactively(&action, client(None), body, |_| Ok(()), |(), _| outcome)
    };
    let session = asked(send(&Value::Null, Ok(json!({}))).unwrap())["session"].clone();
    let auth = json!({ "type": "m.login.dummy", "session": session });
    let taken = Error::new(ErrCode::UserInUse, "taken");
    assert_eq!(send(&auth, Err(taken)).err().unwrap().errcode(), ErrCode::UserInUse);
    let body = asked(send(&auth, Err(Error::new(ErrCode::Unauthorized, "used up"))).unwrap());
    assert_eq!((&body["session"], &body["errcode"]), (&session, &json!("M_UNAUTHORIZED")));
    assert_eq!(body.get("completed"), None);
    assert_eq!(send(&auth, Err(Error::internal("fire"))).err().unwrap().status(), 500);
    asked(send(&auth, Ok(json!({}))).unwrap());
}

#[test]
fn what_is_under_way_is_bounded_and_no_address_pushes_the_others_out() {
    let hs = homeserver();
    let action = GuardedAction { name: NAME, flows: PASSWORD, incidental: &[], fixed: &[] };
    let begin = |from: u32, said: usize| {
        let client = UiaClient { from: Ipv4Addr::from_bits(from).into(), ..client(None) };
        let body = Map::from_iter([("said".to_owned(), "x".repeat(said).into())]);
        let told = hs.accounts().interactively(&action, client, body, |_| Ok(()), |(), _| Ok(json!({})));
        asked(told.unwrap())["session"].as_str().unwrap().to_owned()
    };
    let honest = begin(1, 10);
    for _ in 0..SESSIONS_MAX + 100 {
        begin(2, 0);
    }
    for n in 0..2000 {
        begin(100 + n % 30, 15_000);
    }
    let sessions = lock(&hs.uia_sessions.sessions);
    assert!(sessions.all.len() <= SESSIONS_MAX);
    assert!(
        sessions.all.values().map(UiaSession::said).sum::<usize>() <= SAID_BYTES_BY_ALL_MAX + SAID_BYTES_MAX
    );
    assert!(sessions.all.contains_key(&honest));
}
