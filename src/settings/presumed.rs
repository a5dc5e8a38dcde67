//! What another program's command line says of engines, which say it themselves when they register.

use std::net::IpAddr;

use http::Uri;

use crate::engine::{HttpAddress, Registration, Role};

/// What was said. What an engine registers counts; where the two differ the user is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presumed {
    /// Each thing that was said of ranks, with the option that says it.
    ranks: Vec<(String, Ranks, u32)>,
    /// Addresses of engines that were listed.
    engines: Vec<(Role, HttpAddress)>,
    /// Roles of which something was listed that says no address.
    unclear: Vec<Role>,
}

/// What a number says of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranks {
    /// Those of an engine on one host, of which it may fill several.
    OnEachHost,
    /// All of an engine of this role, or of any.
    InAll(Option<Role>),
}

impl Presumed {
    /// Engines have so many ranks; none says nothing.
    pub(super) fn ranks(&mut self, option: String, ranks: Ranks, count: u32) {
        if count > 0 {
            self.ranks.push((option, ranks, count));
        }
    }

    /// There is an engine at this URL. If that is none, nothing is known of where engines of the role are.
    pub(super) fn engine(&mut self, role: Role, url: &str) {
        match address(url) {
            Some(address) => self.engines.push((role, address)),
            None => self.unclear.push(role),
        }
    }

    /// Ranks of each host, where another program's options say how many an engine has and that these are more: then it is on
    /// several hosts, and the first one's address stands for the others', as in those programs. `local` is what an option of
    /// ours was told by one of theirs.
    pub(super) fn ranks_of_repeated_hosts(&self, local: u32) -> (u32, Vec<(Option<Role>, u32)>) {
        let each =
            self.ranks.iter().find(|(_, ranks, _)| *ranks == Ranks::OnEachHost).map_or(local, |(.., count)| *count);
        let all = self.ranks.iter().filter_map(|(_, ranks, count)| match ranks {
            Ranks::InAll(role) if each > 1 && *count > each => Some((*role, *count)),
            Ranks::InAll(_) | Ranks::OnEachHost => None,
        });
        (each, all.collect())
    }

    /// What was said that an engine contradicts.
    pub fn contradictions(&self, says: &Registration) -> Vec<String> {
        let wrong = |(_, ranks, count): &&(String, Ranks, u32)| match ranks {
            Ranks::OnEachHost => !says.dp_size.is_multiple_of(*count),
            Ranks::InAll(role) => role.is_none_or(|role| role == says.role) && says.dp_size != *count,
        };
        let ranks = self.ranks.iter().filter(wrong);
        let mut told: Vec<String> = ranks.map(|(option, _, count)| format!("{option} {count}")).collect();
        let listed: Vec<&HttpAddress> =
            self.engines.iter().filter(|(role, _)| *role == says.role).map(|(_, address)| address).collect();
        let is_listed = |listed: &&HttpAddress| {
            // A name and an address may be the same host.
            let comparable = [&listed.host, &says.http.host].iter().all(|host| host.parse::<IpAddr>().is_ok());
            listed.port == says.http.port && (!comparable || listed.host == says.http.host)
        };
        let is_clear = !listed.is_empty() && !self.unclear.contains(&says.role);
        if is_clear && !listed.iter().copied().any(|listed| is_listed(&listed)) {
            told.push(format!("--{} of another address", says.role));
        }
        told
    }
}

/// The address that a URL says.
pub(super) fn address(url: &str) -> Option<HttpAddress> {
    let uri = url.parse::<Uri>().ok()?;
    let usual = match uri.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return None,
    };
    let host = uri.host().filter(|host| !host.is_empty())?.trim_start_matches('[').trim_end_matches(']');
    Some(HttpAddress { host: host.to_owned(), port: uri.port_u16().unwrap_or(usual) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::tests::engine_of;

    #[test]
    fn what_an_engine_says_is_set_against_it() {
        let check = |presumed: &Presumed, role, ranks, told: &[&str]| {
            let mut says = engine_of(1, role, ranks, 1).registration.clone();
            says.http = "10.0.0.1:8000".parse().unwrap();
            assert_eq!(presumed.contradictions(&says), told, "{role} of {ranks}");
        };
        let mut presumed = Presumed::default();
        check(&presumed, Role::Prefill, 8, &[]);
        presumed.ranks("--each".into(), Ranks::OnEachHost, 8);
        presumed.ranks("--none".into(), Ranks::InAll(None), 0);
        presumed.ranks("--decode-ranks".into(), Ranks::InAll(Some(Role::Decode)), 16);
        check(&presumed, Role::Prefill, 8, &[]);
        check(&presumed, Role::Prefill, 16, &[]);
        check(&presumed, Role::Prefill, 1, &["--each 8"]);
        check(&presumed, Role::Decode, 16, &[]);
        check(&presumed, Role::Decode, 4, &["--each 8", "--decode-ranks 16"]);
        let wide = vec![(Some(Role::Decode), 16)];
        assert_eq!(presumed.ranks_of_repeated_hosts(4), (8, wide));
        let mut presumed = Presumed::default();
        assert_eq!(presumed.ranks_of_repeated_hosts(8), (8, vec![]));
        presumed.ranks("--all".into(), Ranks::InAll(None), 16);
        let wide = |local| presumed.ranks_of_repeated_hosts(local).1;
        assert_eq!([0, 1, 8, 16].map(wide), [vec![], vec![], vec![(None, 16)], vec![]]);
        let mut presumed = Presumed::default();
        presumed.ranks("--all".into(), Ranks::InAll(None), 2);
        for url in ["http://10.0.0.2:8000", "http://10.0.0.1:8000/", "https://[::1]"] {
            presumed.engine(Role::Decode, url);
        }
        for url in ["", "10.0.0.1:8000", "http://", "grpc://10.0.0.1:8000", "nonsense"] {
            assert_eq!(address(url), None, "{url}");
        }
        check(&presumed, Role::Decode, 2, &[]);
        check(&presumed, Role::Prefill, 1, &["--all 2"]);
        let mut presumed = Presumed::default();
        presumed.engine(Role::Decode, "http://10.0.0.2:8000");
        check(&presumed, Role::Decode, 1, &["--decode of another address"]);
        presumed.engine(Role::Decode, "http://node-1:8001");
        check(&presumed, Role::Decode, 1, &["--decode of another address"]);
        presumed.engine(Role::Decode, "http://node-1:8000");
        check(&presumed, Role::Decode, 1, &[]);
        check(&presumed, Role::Prefill, 1, &[]);
    }
}
