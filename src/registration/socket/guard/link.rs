//! The private way from the guard to the ROUTER: a Unix listener that no other user can reach.

use std::ffi::OsString;
use std::fs::Permissions;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

/// Connections that may wait for the ROUTER to accept them: all engines of a pool come at once after a restart.
const BACKLOG: i32 = 1024;
const FULL_BACKLOG_PAUSE: Duration = Duration::from_millis(10);

/// Where links are made: a directory only we can enter, or the abstract namespace where none can be written.
#[derive(Debug)]
pub struct Den {
    directory: Option<TempDir>,
    life: u64,
    opened: u64,
}

/// One ROUTER's private address. Dropping it ends every connection made through it.
#[derive(Debug)]
pub struct Link {
    path: PathBuf,
    closed: CancellationToken,
    life: u64,
    used: AtomicU64,
    worn: CancellationToken,
}

/// Two descriptors kept free for the two ends of one link. The ROUTER's accept loop spins when it finds none.
///
/// The kernel wants a free descriptor even to say that nobody is waiting, which is what that loop asks after each link;
/// so a reserve is taken only if one is left over for that, and one for the peer's own socket.
#[derive(Debug)]
pub struct Reserve {
    _ends: (StdUnixStream, StdUnixStream),
}

impl Reserve {
    /// Takes the descriptors, if that leaves two more.
    pub fn take() -> io::Result<Self> {
        let ends = StdUnixStream::pair()?;
        drop((ends.0.try_clone()?, ends.1.try_clone()?));
        Ok(Self { _ends: ends })
    }
}

impl Den {
    /// Makes the directory; without one, links will be abstract addresses. A link is worn after `life` connections.
    pub fn create(life: u64) -> Self {
        let owner_only = Permissions::from_mode(0o700);
        let directory = tempfile::Builder::new().prefix("moriio-proxy-").permissions(owner_only).tempdir();
        if let Err(error) = &directory {
            warn!(%error, "no private directory for discovery, falling back to an abstract socket address");
        }
        Self { directory: directory.ok(), life, opened: 0 }
    }

    /// A fresh address and the listener bound to it.
    pub fn open(&mut self) -> io::Result<(Link, StdUnixListener)> {
        self.opened += 1;
        if let Some(directory) = &self.directory {
            let path = directory.path().join(format!("router-{}", self.opened));
            match bind(&path) {
                Ok(listener) => return Ok((Link::new(path, self.life), listener)),
                // A long TMPDIR does not fit into a socket address, a full disk takes no new name.
                Err(error) => warn!(%error, path = %path.display(), "cannot bind, using an abstract socket address"),
            }
        }
        let name = format!("\0moriio-proxy-{}", Uuid::new_v4().simple());
        let path = PathBuf::from(OsString::from_vec(name.into_bytes()));
        let listener = bind(&path)?;
        Ok((Link::new(path, self.life), listener))
    }
}

impl Link {
    fn new(path: PathBuf, life: u64) -> Self {
        let (closed, worn) = (CancellationToken::new(), CancellationToken::new());
        Self { path, closed, life, used: AtomicU64::new(0), worn }
    }

    /// Resolves when the ROUTER has had as many connections as it should: it keeps some memory of each.
    pub(crate) async fn worn(&self) {
        self.worn.cancelled().await;
    }

    /// Resolves when the ROUTER behind this link has been given up.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Ends every connection made through this link.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Connects; waits while the ROUTER's queue of new connections is full, so the caller sets the time limit.
    pub async fn connect(&self, reserve: Reserve) -> io::Result<UnixStream> {
        drop(reserve);
        if self.used.fetch_add(1, Ordering::Relaxed) + 1 == self.life {
            self.worn.cancel();
        }
        loop {
            match UnixStream::connect(&self.path).await {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(FULL_BACKLOG_PAUSE).await,
                result => return result,
            }
        }
    }
}

fn bind(path: &PathBuf) -> io::Result<StdUnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
