//! KV ports: listeners that the script can close.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use super::core::Core;

/// Waits until a watched flag has this value. Its sender must outlive the caller.
pub(crate) async fn becomes(flag: &mut watch::Receiver<bool>, value: bool) {
    let _ = flag.wait_for(|now| *now == value).await;
}

/// The flag by which the script closes a port.
pub(crate) type Door = fn(&Core) -> &watch::Sender<bool>;

/// Opens a KV port on a host, and closes it with all its connections whenever the script says so.
pub(crate) async fn listen_raw<Work>(
    core: Arc<Core>,
    host: usize,
    port: impl Fn(&Core) -> io::Result<TcpListener>,
    door: Option<Door>,
    serve: impl Fn(Arc<Core>, TcpStream) -> Work,
) where
    Work: Future<Output = ()> + Send + 'static,
{
    let open = watch::Sender::new(false);
    let mut closed = door.map_or_else(|| open.subscribe(), |door| door(&core).subscribe());
    let connections = closed.clone();
    loop {
        becomes(&mut closed, false).await;
        let listener = match port(&core) {
            Ok(listener) => listener,
            Err(error) => match core.die(format!("KV port: {error}")).await {},
        };
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let (work, mut closed) = (serve(core.clone(), stream), connections.clone());
                        core.spawn_on(host, async move {
                            tokio::select! {
                                () = work => {}
                                () = becomes(&mut closed, true) => {}
                            }
                        });
                    }
                    Err(_) => sleep(Duration::from_millis(100)).await,
                },
                () = becomes(&mut closed, true) => break,
            }
        }
    }
}
