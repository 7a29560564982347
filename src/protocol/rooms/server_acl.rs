//! Server access control lists of rooms (client-server API, "Server Access Control Lists (ACLs) for rooms").

use serde_json::{Map, Value};

use crate::protocol::glob::Glob;
use crate::protocol::ids::is_ip_literal;

/// The lists of an `m.room.server_acl` event, ready to be asked.
#[derive(Debug, Clone)]
pub struct ServerAcl {
    allow_ip_literals: bool,
    allow: Vec<Glob>,
    deny: Vec<Glob>,
}

impl Default for ServerAcl {
    /// Everybody is allowed.
    fn default() -> Self {
        Self::from_lists(&[], &[])
    }
}

impl ServerAcl {
    /// Reads the event's content. What is not of the right type counts as absent, entry by entry.
    pub fn from_content(content: &Map<String, Value>) -> Self {
        let globs = |key: &str| {
            let entries = content.get(key).and_then(Value::as_array);
            entries.into_iter().flatten().filter_map(Value::as_str).map(Glob::new).collect()
        };
        Self {
            allow_ip_literals: content.get("allow_ip_literals").and_then(Value::as_bool).unwrap_or(true),
            allow: globs("allow"),
            deny: globs("deny"),
        }
    }

    /// An ACL of two lists of patterns; an empty list of those to allow allows all.
    pub fn from_lists(allow: &[String], deny: &[String]) -> Self {
        let globs = |patterns: &[String]| patterns.iter().map(|pattern| Glob::new(pattern)).collect();
        let allow = if allow.is_empty() { vec![Glob::new("*")] } else { globs(allow) };
        Self { allow_ip_literals: true, allow, deny: globs(deny) }
    }

    /// What it takes in memory, about.
    pub fn bytes(&self) -> usize {
        self.allow.iter().chain(&self.deny).map(Glob::bytes).sum()
    }

    /// Whether a server, whose port does not matter, may take part in the room.
    pub fn allows(&self, server: &str) -> bool {
        let host = without_port(server);
        // Rule 1, no such event, is the caller's.
        // 2. An IP literal where they are not allowed: deny.
        if !self.allow_ip_literals && is_ip_literal(host) {
            return false;
        }
        // As it mostly is, where there is one at all.
        if self.deny.is_empty() && self.allow.iter().any(Glob::matches_all) {
            return true;
        }
        let host = Glob::fold(host);
        // 3. Denied: deny. 4. Allowed: allow. 5. Otherwise deny.
        !self.deny.iter().any(|glob| glob.matches(&host)) && self.allow.iter().any(|glob| glob.matches(&host))
    }
}

/// The name without `:port`. An IPv6 literal's colons are inside its brackets.
fn without_port(server: &str) -> &str {
    match server.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => server,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn acl(content: &Value) -> ServerAcl {
        ServerAcl::from_content(content.as_object().expect("object"))
    }

    #[test]
    fn deny_goes_before_allow_and_ports_do_not_matter() {
        let acl = acl(&json!({"allow": ["*"], "deny": ["evil.example", "[::1]"]}));
        for denied in ["evil.example", "EVIL.example", "evil.example:8448", "[::1]", "[::1]:80"] {
            assert!(!acl.allows(denied), "{denied}");
        }
        assert!(acl.allows("x.evil.example") && acl.allows("1.2.3.4") && acl.allows("[::2]:1"));
    }

    #[test]
    fn ip_literals_can_be_kept_out() {
        let acl = acl(&json!({"allow": ["*"], "allow_ip_literals": false}));
        for literal in ["1.2.3.4", "1.2.3.4:80", "[::1]", "[2001:db8::1]:8448"] {
            assert!(!acl.allows(literal), "{literal}");
        }
        assert!(acl.allows("1.2.3") && acl.allows("1.2.3.4.example"));
    }

    #[test]
    fn what_is_of_the_wrong_type_counts_as_absent() {
        assert!(!acl(&json!({})).allows("a.example"));
        assert!(!acl(&json!({"allow": "*"})).allows("a.example"));
        let odd = acl(&json!({"allow": [1, null, "a.*"], "deny": {"x": 1}, "allow_ip_literals": "false"}));
        assert!(odd.allows("a.example") && !odd.allows("b.example"));
        assert!(acl(&json!({"allow": ["*"], "allow_ip_literals": 0})).allows("1.2.3.4"));
    }
}
