//! Engines over several hosts, as `--engine-hosts` lists them (protocol H1).

use std::fmt::Write as _;
use std::sync::Arc;

use super::values::{Parsed, Refusal};
use crate::engine::hosts::{Host, Hosts};
use crate::engine::{HttpAddress, Registration, Role, is_same_host, plausible_host, port_number};

/// The most bytes of a file of engines.
const FILE_MOST: u64 = 1 << 20;

/// Which hosts belong to which engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    listed: Vec<(HttpAddress, Arc<Hosts>)>,
    /// Engines that are on several hosts by the options of the program that the proxy stands in for, by role and ranks: there the
    /// first host's address stands for the others'.
    pub(super) repeated: Vec<(Option<Role>, u32)>,
    /// Ranks of each of these hosts.
    pub(super) local: u32,
}

impl Spans {
    /// An engine's hosts, where something was said of them.
    pub fn of(&self, says: &Registration) -> Option<Arc<Hosts>> {
        // A host may be spelled in several ways, of which its KV address is another.
        let is_its = |(engine, hosts): &&(HttpAddress, Arc<Hosts>)| {
            let is_named = is_same_host(&engine.host, &says.http.host);
            engine.port == says.http.port && (is_named || is_first(hosts, says))
        };
        if let Some((_, hosts)) = self.listed.iter().find(is_its) {
            return Some(hosts.clone());
        }
        let is_told =
            |(role, ranks): &(Option<Role>, u32)| role.is_none_or(|role| role == says.role) && *ranks == says.dp_size;
        let is_wide = self.repeated.iter().any(is_told) && says.dp_size.is_multiple_of(self.local);
        let count = is_wide.then(|| usize::try_from(says.dp_size / self.local).ok()).flatten()?;
        let first = Host { address: says.kv.host.clone(), http: None };
        Hosts::new(vec![first; count], self.local).map(Arc::new)
    }

    /// The engine that is listed with this one's KV host, though none is listed as it is called.
    pub fn nearly(&self, says: &Registration) -> Option<&HttpAddress> {
        let found = self.listed.iter().find(|(_, hosts)| is_first(hosts, says));
        found.filter(|_| self.of(says).is_none()).map(|(engine, _)| engine)
    }
}

/// Engines with their hosts: `ADDR=HOST,HOST,...@RANKS` each, or `@FILE` with one on each line.
pub(super) fn listed(text: &str) -> Parsed<Spans> {
    let mut spans = Spans::default();
    let mut rest = text.trim();
    while !rest.is_empty() {
        if let Some(from) = rest.strip_prefix('@') {
            let (file, after) = from.split_once(',').unwrap_or((from, ""));
            for (number, line) in lines(file)? {
                let told = |why: &str| Refusal::EngineHosts(format!("{why} in line {number}, {line:?}"));
                entry(&line).and_then(|engine| spans.add(engine)).map_err(told)?;
            }
            rest = after.trim();
            continue;
        }
        // Commas part hosts, too, so that an entry ends behind its ranks.
        let end = rest.find('@').and_then(|ranks| rest[ranks..].find(',').map(|comma| ranks + comma));
        let end = end.unwrap_or(rest.len());
        let told = |why: &str| Refusal::EngineHosts(format!("{why} in {:?}", &rest[..end]));
        entry(&rest[..end]).and_then(|engine| spans.add(engine)).map_err(told)?;
        rest = rest[end..].trim_start_matches(',').trim();
    }
    if spans.listed.is_empty() {
        return Err(Refusal::EngineHosts(String::from("nothing is listed")));
    }
    let shown = spans.to_string();
    Ok((spans, shown))
}

/// A file's lines with their numbers, without comments and empty ones.
fn lines(file: &str) -> Result<Vec<(usize, String)>, Refusal> {
    let unread = |error| Refusal::EngineHosts(format!("its file cannot be read: {error}"));
    if std::fs::metadata(file).map_err(unread)?.len() > FILE_MOST {
        return Err(Refusal::EngineHosts(String::from("its file is larger than 1MiB")));
    }
    let text = std::fs::read_to_string(file).map_err(unread)?;
    let said = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim().to_owned());
    Ok((1..).zip(said).filter(|(_, line)| !line.is_empty()).collect())
}

/// One engine.
fn entry(text: &str) -> Result<(HttpAddress, Hosts), &'static str> {
    let (engine, hosts) = text.split_once('=').ok_or("an engine's HTTP address is missing")?;
    let engine: HttpAddress = engine.parse().map_err(|_| "an engine's HTTP address is none")?;
    let (hosts, ranks) = hosts.rsplit_once('@').ok_or("ranks of each host are missing")?;
    let ranks = ranks.trim().parse().ok().filter(|ranks| (1..=1024).contains(ranks));
    let ranks: u32 = ranks.ok_or("ranks of each host are from 1 to 1024")?;
    let mut all: Vec<Host> = Vec::new();
    for host in hosts.split(',') {
        let host = one(host.trim()).ok_or("a host is no name, address or address with port")?;
        if all.iter().any(|other| other.address.eq_ignore_ascii_case(&host.address)) {
            return Err("a host is named twice");
        }
        all.push(host);
    }
    if let Some(first) = all.first_mut()
        && let Some(http) = first.http.take()
        && http.port != engine.port
    {
        return Err("the first host's port is not its engine's");
    }
    let hosts = Hosts::new(all, ranks);
    let hosts = hosts.ok_or("all hosts but the first have a port, or none has; 256 at most")?;
    Ok((engine, hosts))
}

/// A host, with the port where it takes requests itself. An IPv6 address has brackets where a port follows.
fn one(text: &str) -> Option<Host> {
    let bracketed = text.strip_prefix('[').and_then(|text| text.split_once(']'));
    let (address, port) = match bracketed {
        Some((address, "")) => (address, None),
        Some((address, port)) => (address, Some(port.strip_prefix(':')?)),
        None if text.matches(':').count() == 1 => text.split_once(':').map(|(address, port)| (address, Some(port)))?,
        None => (text, None),
    };
    let address = plausible_host(address)?.to_owned();
    let http = match port {
        Some(port) => Some(HttpAddress { host: address.clone(), port: port_number(port)? }),
        None => None,
    };
    Some(Host { address, http })
}

fn is_first(hosts: &Hosts, says: &Registration) -> bool {
    hosts.all().first().is_some_and(|first| is_same_host(&first.address, &says.kv.host))
}

impl Spans {
    fn add(&mut self, (engine, hosts): (HttpAddress, Hosts)) -> Result<(), &'static str> {
        if self.listed.iter().any(|(other, _)| *other == engine) {
            return Err("an engine is listed twice");
        }
        self.listed.push((engine, Arc::new(hosts)));
        Ok(())
    }
}

impl std::fmt::Display for Spans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (engine, hosts)) in self.listed.iter().enumerate() {
            let mut names = String::new();
            for host in hosts.all() {
                let comma = if names.is_empty() { "" } else { "," };
                match &host.http {
                    Some(http) => write!(names, "{comma}{http}")?,
                    None => write!(names, "{comma}{}", host.address)?,
                }
            }
            write!(f, "{}{engine}={names}@{}", if at == 0 { "" } else { "," }, hosts.local())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Role;
    use crate::pool::tests::engine_of;

    #[test]
    fn engines_are_listed_with_their_hosts() {
        let shown = |text: &str| listed(text).map(|(_, shown)| shown);
        for text in [
            "10.0.0.1:8000=10.0.0.1,10.0.0.2@8",
            "10.0.0.1:8000=10.0.0.1,10.0.0.2:8100@8,node-3:8000=node-3,node-4@4",
            "[fd00::1]:8000=fd00::1,[fd00::2]:8000@1",
        ] {
            assert_eq!(shown(text).as_deref(), Ok(text));
        }
        let spaced = shown(" 10.0.0.1:8000=10.0.0.1:8000, [fd00::2]:80 @ 8 , 10.0.0.9:1=10.0.0.9@1 ");
        assert_eq!(spaced.as_deref(), Ok("10.0.0.1:8000=10.0.0.1,[fd00::2]:80@8,10.0.0.9:1=10.0.0.9@1"));
        for (text, why) in [
            ("", "nothing is listed"),
            ("10.0.0.1:8000", "an engine's HTTP address is missing"),
            ("10.0.0.1:8000=10.0.0.1", "ranks of each host are missing"),
            ("10.0.0.1,10.0.0.2@8", "an engine's HTTP address is missing"),
            ("10.0.0.1=10.0.0.1@8", "an engine's HTTP address is none"),
            ("10.0.0.1:8000=10.0.0.1@0", "ranks of each host are from 1 to 1024"),
            ("10.0.0.1:8000=10.0.0.1,@8", "a host is no name, address or address with port"),
            ("10.0.0.1:8000=10.0.0.1,a/b@8", "a host is no name, address or address with port"),
            ("10.0.0.1:8000=10.0.0.1,h:0@8", "a host is no name, address or address with port"),
            ("10.0.0.1:8000=a,A@8", "a host is named twice"),
            ("10.0.0.1:8000=a:9,b:8000@8", "the first host's port is not its engine's"),
            ("10.0.0.1:8000=a,b:1,c@8", "all hosts but the first have a port, or none has; 256 at most"),
            ("10.0.0.1:8000=a@1,10.0.0.1:8000=b@1", "an engine is listed twice"),
            ("@/no/such/file", "its file cannot be read"),
        ] {
            let Err(Refusal::EngineHosts(told)) = shown(text) else { panic!("{text}") };
            assert!(told.starts_with(why), "{text}: {told}");
        }
    }

    #[test]
    fn a_file_has_an_engine_on_each_line() {
        let file = std::env::temp_dir().join(format!("moriio-hosts-{}", std::process::id()));
        std::fs::write(&file, "# prefill\n10.0.0.1:8000=10.0.0.1,10.0.0.2@8  # two nodes\n\n").unwrap();
        let read = listed(&format!("@{},10.0.0.9:1=10.0.0.9@1", file.display())).map(|(_, shown)| shown);
        std::fs::write(&file, "\n10.0.0.1:8000=10.0.0.1@8\n10.0.0.2:8000=10.0.0.2 # ranks?").unwrap();
        let wrong = listed(&format!("@{}", file.display())).map(|_| ());
        std::fs::write(&file, vec![b'#'; 1 << 21]).unwrap();
        let large = listed(&format!("@{}", file.display()));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read.as_deref(), Ok("10.0.0.1:8000=10.0.0.1,10.0.0.2@8,10.0.0.9:1=10.0.0.9@1"));
        let told = |said: &str| Err(Refusal::EngineHosts(said.to_owned()));
        assert_eq!(wrong, told("ranks of each host are missing in line 3, \"10.0.0.2:8000=10.0.0.2\""));
        assert_eq!(large.map(|_| ()), told("its file is larger than 1MiB"));
    }

    #[test]
    fn hosts_are_an_engines_by_its_http_address() {
        let (mut spans, _) = listed("10.0.0.1:7=10.0.0.1,10.0.0.2@2").unwrap();
        let says = |port, ranks| engine_of(port, Role::Prefill, ranks, 1).registration.clone();
        assert_eq!(spans.of(&says(7, 4)).map(|hosts| hosts.all().len()), Some(2));
        assert_eq!(spans.of(&says(8, 4)), None);
        assert_eq!(spans.nearly(&says(8, 4)).map(ToString::to_string).as_deref(), Some("10.0.0.1:7"));
        assert_eq!(spans.nearly(&says(7, 4)), None);
        // The same host by another spelling.
        for spelled in ["node-one:7=10.0.0.1,b@2", "[::ffff:a]:7=10.0.0.1,b@2", "[0:0::1]:7=10.0.0.1,b@2"] {
            assert!(listed(spelled).unwrap().0.of(&says(7, 4)).is_some(), "{spelled}");
        }
        // Another program's way: the first host's address, as often as its ranks need hosts.
        (spans.local, spans.repeated) = (2, vec![(None, 6), (Some(Role::Decode), 4)]);
        let repeated = spans.of(&says(8, 6)).unwrap();
        assert!(repeated.all().iter().all(|host| host.address == says(8, 6).kv.host && host.http.is_none()));
        assert_eq!((repeated.all().len(), repeated.local()), (3, 2));
        assert_eq!((spans.of(&says(8, 2)), spans.of(&says(8, 4))), (None, None));
    }
}
