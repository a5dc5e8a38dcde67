use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket, SocketSend};

use crate::listener::{Heard, Incident, Listener, ListenerSettings, start_with};

const PATIENCE: Duration = Duration::from_secs(60);

struct Bed {
    listener: Listener,
    heard: mpsc::Receiver<Heard>,
    incidents: mpsc::UnboundedReceiver<Incident>,
    deaf: Arc<AtomicBool>,
}

fn bed(change: impl FnOnce(&mut ListenerSettings)) -> Bed {
    let mut settings = ListenerSettings::new("127.0.0.1:0".parse().unwrap());
    change(&mut settings);
    let (sink, heard) = mpsc::channel(1024);
    let (report, incidents) = mpsc::unbounded_channel();
    let deaf = Arc::new(AtomicBool::new(false));
    let report = move |incident| report.send(incident).unwrap_or_default();
    let listener = start_with(settings, sink, report, Arc::clone(&deaf)).unwrap();
    Bed {
        listener,
        heard,
        incidents,
        deaf,
    }
}

impl Bed {
    async fn dealer(&self) -> DealerSocket {
        let mut dealer = DealerSocket::new();
        dealer
            .connect(&format!("tcp://{}", self.listener.local_addr()))
            .await
            .unwrap();
        dealer
    }

    async fn next(&mut self) -> Heard {
        timeout(PATIENCE, self.heard.recv()).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn dealer_is_heard() {
    let mut bed = bed(|_| {});
    let mut dealer = bed.dealer().await;
    dealer.send(Bytes::from_static(b"hello").into()).await.unwrap();
    let heard = bed.next().await;
    assert_eq!(heard.payload, "hello");
    assert_eq!(heard.peer.unwrap().ip(), bed.listener.local_addr().ip());
    assert!(bed.incidents.is_empty());
    bed.listener.stop().await;
    let _ = &bed.deaf;
}
