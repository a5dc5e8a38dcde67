//! Registrations with hosts.

use std::sync::Arc;

use super::hosts::{Host, MOST};
use super::*;
use crate::pool::tests::engine_of;

fn host(number: u8, http: Option<u16>) -> Host {
    let address = format!("10.0.1.{number}");
    Host { http: http.map(|port| HttpAddress { host: address.clone(), port }), address }
}

/// An engine whose first host is 10.0.1.1.
fn wide(ranks: u32, hosts: &[(u8, Option<u16>)], local: u32) -> Registration {
    let mut says = engine_of(8000, Role::Prefill, ranks, 1).registration.clone();
    says.http = "10.0.1.1:8000".parse().unwrap();
    says.kv.host = "10.0.1.1".into();
    says.hosts = Hosts::new(hosts.iter().map(|(number, http)| host(*number, *http)).collect(), local).map(Arc::new);
    assert!(says.hosts.is_some());
    says
}

#[test]
fn a_rank_has_its_host_and_its_number_there() {
    let says = wide(16, &[(1, None), (2, None)], 8);
    let places = [0, 7, 8, 11, 15, 16].map(|rank| says.place(rank));
    let [one, two] = ["10.0.1.1", "10.0.1.2"];
    assert_eq!(places, [(one, 0), (one, 7), (two, 0), (two, 3), (two, 7), (one, 0)]);
    assert!(says.spans() && says.misfit().is_none() && says.local_ranks() == 8);
    // One host: as an engine of which nothing is listed.
    let says = wide(8, &[(1, None)], 8);
    assert!(!says.spans() && says.place(5) == (one, 5) && says.host_addresses().eq([one]));
}

#[test]
fn a_leg_goes_to_the_first_host_or_to_its_ranks_own() {
    let headless = wide(16, &[(1, None), (2, None)], 8);
    let door = headless.door(11);
    assert_eq!((door.host, door.address.to_string().as_str(), door.rank), (0, "10.0.1.1:8000", Some(11)));
    assert_eq!((headless.doors(), headless.ranks_behind(0)), (1, 0..16));
    let serving = wide(16, &[(1, None), (2, Some(8100))], 8);
    let door = serving.door(11);
    assert_eq!((door.host, door.address.to_string().as_str(), door.rank), (1, "10.0.1.2:8100", Some(3)));
    let door = serving.door(7);
    assert_eq!((door.host, door.address.to_string().as_str(), door.rank), (0, "10.0.1.1:8000", Some(7)));
    let any = serving.any_behind(1);
    assert_eq!((any.host, any.address.to_string().as_str(), any.rank), (1, "10.0.1.2:8100", None));
    assert_eq!((serving.doors(), serving.ranks_behind(1)), (2, 8..16));
    // One rank a host: no header there, it would be out of range.
    assert_eq!(wide(2, &[(1, None), (2, Some(8100))], 1).door(1).rank, None);
    assert_eq!(wide(2, &[(1, None), (2, None)], 1).door(1).rank, Some(1));
}

#[test]
fn hosts_that_do_not_fit_are_told_of() {
    let misfit = wide(24, &[(1, None), (2, None)], 8).misfit();
    assert_eq!(misfit, Some(Misfit::Ranks { hosts: 2, local: 8, ranks: 24 }));
    assert_eq!(wide(16, &[(2, None), (1, None)], 8).misfit(), Some(Misfit::Master));
    let listed =
        |hosts: &[(u8, Option<u16>)], local| Hosts::new(hosts.iter().map(|(n, http)| host(*n, *http)).collect(), local);
    assert_eq!(listed(&[], 8), None);
    assert_eq!(listed(&[(1, None)], 0), None);
    assert_eq!(listed(&[(1, None), (2, Some(1)), (3, None)], 8), None);
    assert!(listed(&[(1, None); MOST], 4).is_some() && listed(&[(1, None); MOST + 1], 4).is_none());
}

#[test]
fn releases_before_0_28_know_one_host() {
    use super::reach::{hosts_agree, misfit};
    use super::versions::{EngineVersion, traits};
    let at = |minor| traits(Some(EngineVersion::new(0, minor, 1)), Dialect::B);
    let (one, two) = (wide(16, &[(1, None)], 16), wide(16, &[(1, None), (2, None)], 8));
    let unknown = traits(None, Dialect::B);
    assert_eq!(
        [at(27), at(28), unknown].map(|of| misfit(&two, of)),
        [Some(Misfit::Version), None, Some(Misfit::UnknownVersion)]
    );
    assert_eq!([at(27), unknown].map(|of| misfit(&one, of)), [None, None]);
    for mode in [Mode::Read, Mode::Write] {
        assert!(hosts_agree((&one, at(27)), (&one, unknown), mode));
        assert!(hosts_agree((&two, at(28)), (&one, at(32)), mode));
        assert!(!hosts_agree((&two, at(28)), (&one, at(27)), mode));
        // In READ nobody has to know of decode's hosts.
        assert_eq!(hosts_agree((&one, at(27)), (&two, at(28)), mode), mode == Mode::Read);
    }
    // Where another program's options say of hosts that they are there, its images are believed.
    let repeated = wide(16, &[(1, None), (1, None)], 8);
    assert_eq!(misfit(&repeated, unknown), None);
    assert!(hosts_agree((&repeated, unknown), (&repeated, at(27)), Mode::Write));
}
