//! The handle of one simulated engine.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::sleep;

use super::books::{Books, Counters, ReceivedLeg, lock};
use super::core::Core;
use super::fault::{Fault, FaultKind};
use super::listen::listen_raw;
use super::ports::{Ports, Reserved};
use super::settings::Settings;
use super::state::Slot;
use super::{data, handshake, held, http, notify, register};

/// A running simulated engine. Dropping it ends it at once.
pub struct Engine {
    inner: Arc<Inner>,
}

/// What the handle and the control port share.
pub(crate) struct Inner {
    settings: Settings,
    minor: u32,
    books: Arc<Books>,
    life: Mutex<Life>,
}

struct Life {
    core: Arc<Core>,
    ports: Arc<Ports>,
}

impl Engine {
    /// Starts an engine. With a boot delay it returns before any port is open, as pings begin first.
    pub async fn start(settings: Settings) -> io::Result<Self> {
        settings.check()?;
        let settings = settings.settled();
        let minor = settings.minor()?;
        let books = Arc::new(Books::new());
        let ports = Arc::new(Ports::reserve(&settings)?);
        let core = Arc::new(Core::new(settings.clone(), minor, books.clone(), ports.clone()));
        let delay = settings.boot_delay;
        let inner = Arc::new(Inner { settings, minor, books, life: Mutex::new(Life { core: core.clone(), ports }) });
        boot(&core, delay);
        if delay.is_zero() {
            opened(&core).await?;
        }
        Ok(Self { inner })
    }

    /// Where the engine serves HTTP, and says so.
    pub fn http_address(&self) -> SocketAddr {
        self.inner.ports().http_address()
    }

    /// Where each host serves HTTP that does, the master first.
    pub fn http_addresses(&self) -> Vec<SocketAddr> {
        self.inner.ports().http.iter().map(Reserved::address).collect()
    }

    /// The first handshake port.
    pub fn handshake_port(&self) -> u16 {
        self.inner.ports().handshake_base()
    }

    /// The first notify port.
    pub fn notify_port(&self) -> u16 {
        self.inner.ports().notify_base()
    }

    /// What the engine was told at its start.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Arms a fault.
    pub fn set_fault(&self, fault: Fault) {
        self.inner.books.arm(fault);
    }

    /// Disarms all faults, and pings again if pings were paused.
    pub fn clear_faults(&self) {
        self.inner.books.clear_faults();
    }

    /// Stops or resumes the pings. Resuming clears no other fault.
    pub fn pause_pings(&self, paused: bool) {
        if paused {
            self.inner.books.arm(Fault::always(FaultKind::StopPings));
        } else {
            self.inner.books.disarm(&FaultKind::StopPings);
        }
    }

    /// All numbers of this engine.
    pub fn counters(&self) -> Counters {
        self.inner.counters()
    }

    /// The last 1000 legs received.
    pub fn legs(&self) -> Vec<ReceivedLeg> {
        self.inner.books.legs()
    }

    /// What the proxy did wrong so far.
    pub fn violations(&self) -> Vec<String> {
        self.inner.books.violations()
    }

    /// Whether the engine process lives.
    pub fn alive(&self) -> bool {
        self.inner.alive()
    }

    /// Ends the engine process at once: every socket closes, every request is cut.
    pub async fn crash(&self) {
        self.inner.crash().await;
    }

    /// Ends the engine process if it lives and starts a new incarnation, on the same ports or on new ones.
    pub async fn restart(&self, same_ports: bool) -> io::Result<()> {
        self.inner.restart(same_ports).await
    }

    /// Ends what runs on a child host, with all that its ranks held, while the master goes on as if nothing had happened.
    pub async fn lose_host(&self, index: usize) -> io::Result<()> {
        self.inner.child(index)?.lose(index).await;
        Ok(())
    }

    /// Starts a lost child host again, on its ports and with nothing of what it knew.
    pub async fn restore_host(&self, index: usize) -> io::Result<()> {
        let core = self.inner.child(index)?;
        core.lose(index).await;
        core.replace(index);
        open(&core, index);
        let ports = &core.ports;
        reached(&core, ports.http.get(index).unwrap_or(&ports.hosts[index].data).address()).await
    }

    /// Ends the engine and waits until its sockets are closed.
    pub async fn stop(self) {
        self.inner.crash().await;
    }

    /// The part shared with a control port.
    pub(crate) fn inner(&self) -> Arc<Inner> {
        self.inner.clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.inner.core().token.cancel();
    }
}

impl Inner {
    fn core(&self) -> Arc<Core> {
        lock(&self.life).core.clone()
    }

    pub(crate) fn ports(&self) -> Arc<Ports> {
        lock(&self.life).ports.clone()
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn books(&self) -> &Books {
        &self.books
    }

    pub(crate) fn alive(&self) -> bool {
        !self.core().token.is_cancelled()
    }

    pub(crate) fn counters(&self) -> Counters {
        let mut counters = self.books.counters();
        let core = self.core();
        if !core.token.is_cancelled() {
            core.gauges(&mut counters);
        }
        counters
    }

    /// The living engine, if it has such a host besides its master's.
    fn child(&self, index: usize) -> io::Result<Arc<Core>> {
        if index == 0 || index >= self.settings.hosts.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no child host {index}")));
        }
        Ok(self.core())
    }

    pub(crate) async fn crash(&self) {
        let core = self.core();
        core.token.cancel();
        core.gone().await;
    }

    pub(crate) async fn restart(&self, same_ports: bool) -> io::Result<()> {
        self.crash().await;
        let ports = if same_ports {
            self.ports()
        } else {
            Arc::new(Ports::reserve(&Settings { http_port: 0, ..self.settings.clone() })?)
        };
        let core = Arc::new(Core::new(self.settings.clone(), self.minor, self.books.clone(), ports.clone()));
        *lock(&self.life) = Life { core: core.clone(), ports };
        // The ping of a restarted engine is always earlier than its HTTP port.
        boot(&core, self.settings.boot_delay.max(Duration::from_millis(20)));
        if self.settings.boot_delay.is_zero() {
            opened(&core).await?;
        }
        Ok(())
    }
}

/// Starts pinging, and opens the ports after the delay.
fn boot(core: &Arc<Core>, delay: Duration) {
    core.books.count(|counters| counters.incarnation += 1);
    core.spawn(register::run(core.clone()));
    let booting = core.clone();
    core.spawn(async move {
        if !delay.is_zero() {
            sleep(delay).await;
        }
        (0..booting.settings.hosts.len()).for_each(|host| open(&booting, host));
        booting.spawn(held::reap(booting.clone()));
    });
}

/// Opens the ports of a host: the KV ports of its own ranks alone.
fn open(core: &Arc<Core>, host: usize) {
    for offset in 0..core.settings.local_dp().max(core.settings.tp) {
        let (slot, port) = (Slot { host, offset }, offset as usize);
        let listening = listen_raw(
            core.clone(),
            host,
            move |core| core.ports.hosts[host].handshake[port].listen(),
            Some(|core| &core.books.handshake_closed),
            move |core, stream| handshake::serve(core, stream, slot),
        );
        core.spawn_on(host, listening);
        let listening = listen_raw(
            core.clone(),
            host,
            move |core| core.ports.hosts[host].notify[port].listen(),
            Some(|core| &core.books.notify_closed),
            move |core, stream| notify::serve(core, stream, slot),
        );
        core.spawn_on(host, listening);
    }
    let data = move |core, stream| data::serve(core, stream, host);
    core.spawn_on(host, listen_raw(core.clone(), host, move |core| core.ports.hosts[host].data.listen(), None, data));
    if host < core.ports.http.len() {
        core.spawn_on(host, http::listen(core.clone(), host));
    }
}

/// Waits until all HTTP ports accept, unless the script keeps them closed.
async fn opened(core: &Arc<Core>) -> io::Result<()> {
    for port in &core.ports.http {
        reached(core, port.address()).await?;
    }
    Ok(())
}

async fn reached(core: &Core, address: SocketAddr) -> io::Result<()> {
    loop {
        if core.token.is_cancelled() {
            return Err(io::Error::other(core.books.counters().died_of.unwrap_or_else(|| "stopped".into())));
        }
        if *core.books.refuse.borrow() || tokio::net::TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        sleep(Duration::from_millis(5)).await;
    }
}
