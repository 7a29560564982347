//! How places that strangers fill are shared out between their servers: invites that wait for a user's answer, knocks
//! that wait for a room's.
//!
//! Nobody may take more than a part of what is still free. So the first to come may have many places while the rest
//! stand empty, whoever comes late finds one however many the others took, and it takes a score of servers that all
//! take what they can to fill everything. Some places are not for strangers at all.

use std::collections::HashMap;

/// What a server is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerStanding {
    /// One that we have nothing to do with.
    Stranger,
    /// One that shares a room with those who are asked.
    Known,
    /// This server.
    Ours,
}

impl ServerStanding {
    /// How many of the places are for servers of this standing.
    fn open(self, places: usize) -> usize {
        match self {
            Self::Stranger => places - places / 4,
            Self::Known | Self::Ours => places,
        }
    }

    /// Of what is free, one server may have one part in so many.
    fn part(self) -> usize {
        match self {
            Self::Stranger => 4,
            Self::Known => 2,
            Self::Ours => 1,
        }
    }
}

/// Whether a server may have one more of so many `places`. `holders`: the server that holds it, for each that is taken.
///
/// Places may come to be taken by ways that nobody can refuse; a server that has many in this way is counted with
/// half of all, so that it keeps no other out.
pub fn has_place<'a>(
    places: usize,
    holders: impl IntoIterator<Item = &'a str>,
    server: &str,
    standing: ServerStanding,
) -> bool {
    let mut by_server: HashMap<&str, usize> = HashMap::new();
    for holder in holders {
        *by_server.entry(holder).or_default() += 1;
    }
    let most = (places / 2).max(1);
    let taken: usize = by_server.values().map(|held| (*held).min(most)).sum();
    let free = standing.open(places).saturating_sub(taken);
    let held = by_server.get(server).copied().unwrap_or(0);
    held * standing.part() < free
}

#[cfg(test)]
mod tests {
    use super::ServerStanding::{Known, Ours, Stranger};
    use super::*;

    /// How many places a server gets that takes what it can, after those that are taken.
    fn take_all<'a>(
        places: usize,
        taken: &mut Vec<&'a str>,
        server: &'a str,
        standing: ServerStanding,
    ) -> usize {
        let before = taken.len();
        while has_place(places, taken.iter().copied(), server, standing) {
            taken.push(server);
        }
        taken.len() - before
    }

    #[test]
    fn nobody_takes_all_and_who_comes_late_finds_a_place() {
        let names: Vec<String> = (0..100).map(|n| format!("s{n}.org")).collect();
        let mut taken = Vec::new();
        let shares: Vec<usize> = names.iter().map(|name| take_all(100, &mut taken, name, Stranger)).collect();
        assert_eq!(shares[..5], [15, 12, 10, 8, 6]);
        assert!(shares.iter().position(|share| *share == 0).is_some_and(|n| n >= 15), "{shares:?}");
        assert_eq!(taken.len(), 75, "the rest is not for strangers");
        assert_eq!(take_all(100, &mut taken, "friend.org", Known), 9);
        assert_eq!(take_all(100, &mut taken, "us.org", Ours), 8);
        assert_eq!(take_all(100, &mut taken, "other-friend.org", Known), 3);
        let mut alone = Vec::new();
        assert_eq!(take_all(100, &mut alone, "us.org", Ours), 50);
        assert_eq!(take_all(100, &mut alone, "friend.org", Known), 17);
    }

    #[test]
    fn few_places_are_shared_too() {
        for places in 1..20 {
            let mut taken = Vec::new();
            assert!(take_all(places, &mut taken, "a.org", Stranger) >= 1, "{places}");
            assert!(places < 3 || take_all(places, &mut taken, "b.org", Stranger) >= 1, "{places}");
            assert!(taken.len() <= places);
        }
        assert!(!has_place(1, ["a.org"], "b.org", Ours));
    }

    #[test]
    fn who_has_too_many_by_other_ways_keeps_no_other_out() {
        let flood = std::iter::repeat_n("evil.org", 5000);
        assert!(!has_place(100, flood.clone(), "evil.org", Known));
        assert!(has_place(100, flood, "honest.org", Stranger));
    }
}
