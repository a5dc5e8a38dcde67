//! Long work by turns: what reads or writes a large body lets the runtime look at its sockets every now and then, or nobody else on
//! its thread goes on meanwhile.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::task::JoinHandle;

/// What is read or written before others have their turn: sockets take and give megabytes at once.
pub(crate) const TURN: usize = 256 * 1024;

/// Bodies from this size on are parsed and freed off the threads that serve connections.
pub(crate) const LARGE: usize = 1024 * 1024;

/// The turns of one piece of work.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Bytes of this turn.
    taken: usize,
    /// Ends once the runtime has looked at its sockets.
    pause: Option<JoinHandle<()>>,
}

impl Turns {
    /// So many bytes were read or written.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.taken += bytes;
    }

    /// Whether it may go on: not before the others' turn, when its own is over. To wake oneself would not do, since a task that does
    /// is polled again before any socket is looked at; nor would a pause that ends with the next poll, since whoever shares
    /// the task may wake it. So the pause is a task of its own.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.taken >= TURN {
            self.taken = 0;
            self.pause = Some(tokio::spawn(tokio::task::yield_now()));
        }
        if let Some(pause) = &mut self.pause {
            // It cannot fail, and what a runtime that ends cuts off is over anyway.
            let _ = ready!(Pin::new(pause).poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn sockets_are_looked_at_between_two_turns() {
        const TAKEN: usize = 32;
        let mut turns = Turns::default();
        let work = tokio::spawn(async move {
            for _ in 0..TAKEN {
                turns.took(TURN);
                poll_fn(|cx| {
                    // Others in the task want to be polled again at once.
                    cx.waker().wake_by_ref();
                    turns.poll(cx)
                })
                .await;
            }
        });
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let mut heard = 0;
        while !work.is_finished() {
            near.write_all(b"x").await.unwrap();
            far.read_exact(&mut [0]).await.unwrap();
            heard += 1;
        }
        assert!(heard >= TAKEN - 2, "{heard} words came through while {TAKEN} turns were taken");
    }

    #[tokio::test]
    async fn little_work_is_not_put_off() {
        let mut turns = Turns::default();
        turns.took(TURN - 1);
        assert!(futures::poll!(poll_fn(|cx| turns.poll(cx))).is_ready());
        turns.took(1);
        assert!(futures::poll!(poll_fn(|cx| turns.poll(cx))).is_pending());
    }
}
