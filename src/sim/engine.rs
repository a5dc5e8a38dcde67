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
use super::ports::Ports;
use super::settings::Settings;
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
        let minor = settings.minor()?;
        let books = Arc::new(Books::new());
        let ports = Arc::new(reserve(&settings)?);
        let core = Arc::new(Core::new(settings.clone(), minor, books.clone(), ports.clone()));
        let delay = settings.boot_delay;
        let inner = Arc::new(Inner { settings, minor, books, life: Mutex::new(Life { core: core.clone(), ports }) });
        boot(&core, delay);
        if delay.is_zero() {
            opened(&core).await?;
        }
        Ok(Self { inner })
    }

    /// Where the engine serves HTTP.
    pub fn http_address(&self) -> SocketAddr {
        self.inner.ports().http.address()
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
            Arc::new(reserve(&Settings { http_port: 0, ..self.settings.clone() })?)
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

fn reserve(settings: &Settings) -> io::Result<Ports> {
    Ports::reserve(settings.host, settings.http_port, settings.dp.max(settings.tp) as u16)
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
        for offset in 0..booting.ports.handshake.len() {
            let rank = offset as u32;
            let core = booting.clone();
            booting.spawn(listen_raw(
                core.clone(),
                move |core| core.ports.handshake[offset].listen(),
                Some(|core| &core.books.handshake_closed),
                move |core, stream| handshake::serve(core, stream, rank),
            ));
            booting.spawn(listen_raw(
                core,
                move |core| core.ports.notify[offset].listen(),
                Some(|core| &core.books.notify_closed),
                move |core, stream| notify::serve(core, stream, rank),
            ));
        }
        booting.spawn(listen_raw(booting.clone(), |core| core.ports.data.listen(), None, data::serve));
        booting.spawn(held::reap(booting.clone()));
        booting.spawn(http::listen(booting.clone()));
    });
}

/// Waits until the HTTP port accepts, unless the script keeps it closed.
async fn opened(core: &Arc<Core>) -> io::Result<()> {
    loop {
        if core.token.is_cancelled() {
            return Err(io::Error::other(core.books.counters().died_of.unwrap_or_else(|| "stopped".into())));
        }
        if *core.books.refuse.borrow() || tokio::net::TcpStream::connect(core.ports.http.address()).await.is_ok() {
            return Ok(());
        }
        sleep(Duration::from_millis(5)).await;
    }
}
