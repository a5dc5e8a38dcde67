//! One look at one engine: whether it is alive and which release it is, and whether its KV ports take connections. Nothing is
//! ever sent to those: a message there can end the engine's listener (protocol R7).

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::engine::hosts::Host;
use crate::engine::versions::EngineVersion;
use crate::engine::{KvEndpoint, Registration};
use crate::pool::reason::{Failure, Lost};
use crate::pool::registry::{Probe, ProbeOrder};

/// Time for one request of a probe.
const LIMIT: Duration = Duration::from_secs(2);
/// The most that `/version` may say.
const VERSION_ANSWER: usize = 4096;

/// Asks one engine.
pub(super) async fn probe(client: &reqwest::Client, order: &ProbeOrder) -> Probe {
    // All places at once: one that is down takes its time to say so, and none may hide what another says.
    let (first, others) =
        tokio::join!(ask(client, &order.registration, order.contested), children(client, &order.registration));
    let is_gone = |(_, lost): &(usize, Lost)| matches!(lost, Lost::KvRefused(_) | Lost::Refused(_));
    let gone = others.iter().any(is_gone);
    let is_certain = |(place, lost): &&(usize, Lost)| !Failure::Host(*place, *lost).is_doubtful();
    let worst = others.iter().find(|lost| is_gone(lost)).or(others.iter().find(is_certain)).or(others.first());
    let failure = match (first, worst) {
        // Whether the engine is there at all hangs on its first host.
        (Err(failure), _) => failure,
        (Ok(()), Some((place, lost))) => Failure::Host(*place, *lost),
        (Ok(()), None) if order.release => return Probe::Alive(release(client, &order.registration).await),
        (Ok(()), None) => return Probe::Alive(None),
    };
    if gone { Probe::HostGone(failure) } else { Probe::Failed(failure) }
}

async fn ask(client: &reqwest::Client, registration: &Registration, contested: bool) -> Result<(), Failure> {
    // Whoever has the address answers `/health`; the KV ports are each process's own.
    if contested {
        kv_ports(&registration.kv).await?;
    }
    health(client, registration).await?;
    if !contested {
        kv_ports(&registration.kv).await?;
    }
    Ok(())
}

/// What is wrong with hosts beyond the first, by their places. Where the first one's address stands for all there is nothing to
/// ask of others.
async fn children(client: &reqwest::Client, registration: &Registration) -> Vec<(usize, Lost)> {
    let hosts = registration.hosts.iter().filter(|hosts| !hosts.is_repeated());
    let others = hosts.flat_map(|hosts| hosts.all().iter().enumerate().skip(1));
    let looks = others.map(|(place, host)| async move {
        child(client, &registration.kv, host).await.err().map(|lost| (place, lost))
    });
    futures::future::join_all(looks).await.into_iter().flatten().collect()
}

/// A host beyond the first: its KV ports, and its HTTP server where it has one.
async fn child(client: &reqwest::Client, kv: &KvEndpoint, host: &Host) -> Result<(), Lost> {
    let addresses = resolve(&host.address).await;
    if addresses.is_empty() {
        return Err(Lost::Unresolved);
    }
    let (handshake, notify) = tokio::join!(connects(&addresses, kv.handshake), connects(&addresses, kv.notify));
    handshake.and(notify)?;
    let Some(http) = &host.http else { return Ok(()) };
    match client.get(http.url("/health")).timeout(LIMIT).send().await {
        Ok(answer) if answer.status().as_u16() < 500 => Ok(()),
        Ok(answer) => Err(Lost::Status(answer.status().as_u16())),
        Err(error) => match unanswered(&error) {
            Failure::Refused => Err(Lost::Refused(http.port)),
            _ => Err(Lost::NoAnswer),
        },
    }
}

/// Whether a port of a host is open that may have no other sign of life.
async fn connects(addresses: &[IpAddr], port: u16) -> Result<(), Lost> {
    let addresses: Vec<SocketAddr> = addresses.iter().map(|host| SocketAddr::new(*host, port)).collect();
    match timeout(LIMIT, TcpStream::connect(&addresses[..])).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(Lost::KvRefused(port)),
        Ok(Err(error)) if Failure::of_connection(error.kind()).is_some() => Err(Lost::KvUnreachable(port)),
        Err(_) => Err(Lost::KvUnreachable(port)),
        // Anything else is this machine's own trouble.
        Ok(Ok(_) | Err(_)) => Ok(()),
    }
}

async fn health(client: &reqwest::Client, registration: &Registration) -> Result<(), Failure> {
    if resolve(&registration.http.host).await.is_empty() {
        return Err(Failure::Unresolved);
    }
    match client.get(registration.http.url("/health")).timeout(LIMIT).send().await {
        Ok(answer) if answer.status().as_u16() < 500 => Ok(()),
        Ok(answer) => Err(Failure::Status(answer.status().as_u16())),
        Err(error) => Err(unanswered(&error)),
    }
}

/// Why there was no answer: what the connection says, wherever in the chain of causes it stands.
fn unanswered(error: &reqwest::Error) -> Failure {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let said = error.downcast_ref::<io::Error>().and_then(|error| Failure::of_connection(error.kind()));
        if let Some(failure) = said {
            return failure;
        }
        cause = error.source();
    }
    Failure::NoAnswer
}

async fn release(client: &reqwest::Client, registration: &Registration) -> Option<EngineVersion> {
    let answer = client.get(registration.http.url("/version")).timeout(LIMIT).send().await.ok()?;
    let answer: http::Response<reqwest::Body> = answer.into();
    let body = http_body_util::Limited::new(answer.into_body(), VERSION_ANSWER);
    let text = http_body_util::BodyExt::collect(body).await.ok()?.to_bytes();
    let version: Version = serde_json::from_slice(&text).ok()?;
    EngineVersion::parse(&version.version)
}

#[derive(serde::Deserialize)]
struct Version {
    version: String,
}

/// The addresses of a host; none when its name does not resolve.
async fn resolve(host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.parse() {
        return vec![address];
    }
    match timeout(LIMIT, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

async fn kv_ports(kv: &KvEndpoint) -> Result<(), Failure> {
    let hosts = resolve(&kv.host).await;
    if hosts.is_empty() {
        return Err(Failure::KvUnresolved);
    }
    let (handshake, notify) =
        tokio::join!(takes_connections(&hosts, kv.handshake), takes_connections(&hosts, kv.notify));
    handshake.and(notify)
}

/// Whether a port is open. Only a refusal counts against it: a lost packet or a slow answer is no proof.
async fn takes_connections(hosts: &[IpAddr], port: u16) -> Result<(), Failure> {
    let addresses: Vec<SocketAddr> = hosts.iter().map(|host| SocketAddr::new(*host, port)).collect();
    match timeout(LIMIT, TcpStream::connect(&addresses[..])).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(Failure::KvRefused(port)),
        Ok(Ok(_) | Err(_)) | Err(_) => Ok(()),
    }
}
