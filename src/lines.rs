//! Lines for stderr and stdout, written in batches by a thread of their own: whoever reads them may be slow or gone, and
//! nothing may wait for that.

mod line;

use std::io::{self, ErrorKind, Write};
use std::mem;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

pub use line::Plain;
pub(crate) use line::is_plain;

/// Bytes that may wait or be in writing; lines beyond them are lost.
const LIMIT: usize = 4 * 1024 * 1024;
/// How long the writer rests after a batch, so that under load one wake-up serves many lines.
const REST: Duration = Duration::from_millis(5);
/// So much that waits ends the rest.
const PLENTY: usize = 256 * 1024;
/// What a pipe takes as a whole (POSIX's `PIPE_BUF` on Linux): lines of several processes on one pipe stay whole.
const WHOLE: usize = 4096;
/// A buffer that has grown beyond this is given back.
const KEPT: usize = 128 * 1024;
/// At a stop: how long the output may take no byte before the rest is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lines that nobody took, of the whole process.
pub static LOST: LazyLock<Counter> = LazyLock::new(Counter::default);

/// The way to one output. Its thread ends when this is dropped and all that waits is written.
#[derive(Debug)]
pub struct Lines {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// For the writer.
    wake: Condvar,
    /// For whoever flushes.
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Bytes that the writer has taken and not yet written.
    writing: usize,
    /// Lines lost and not yet told.
    lost: u64,
    writer: Writer,
    flushing: usize,
    ended: bool,
}

/// What the writer does: a wake-up is a system call, so nobody wakes one that will look by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Writer {
    #[default]
    Awake,
    Resting,
    Asleep,
}

impl Lines {
    /// Starts the thread that writes to `output`. `told` is called on it with the number of lines that were lost, as soon as
    /// there is room again.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn start(
        name: &str,
        output: impl Write + Send + 'static,
        told: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Lines> {
        let shared = Arc::<Shared>::default();
        let its = shared.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || its.write(output, told))?;
        Ok(Lines { shared })
    }

    /// Has a text of whole lines written; false if there is no room for it, and it is lost.
    pub fn put(&self, lines: &[u8]) -> bool {
        let mut state = self.shared.state();
        if state.waiting.len() + state.writing + lines.len() > LIMIT {
            state.lost += 1;
            LOST.inc();
            return false;
        }
        state.waiting.extend_from_slice(lines);
        let wakes = match state.writer {
            Writer::Awake => false,
            Writer::Resting => state.waiting.len() >= PLENTY,
            Writer::Asleep => true,
        };
        if wakes {
            state.writer = Writer::Awake;
            drop(state);
            self.shared.wake.notify_one();
        }
        true
    }

    /// Waits until all is written, or the output takes nothing any more; false for the latter.
    pub fn flush(&self) -> bool {
        let mut state = self.shared.state();
        state.flushing += 1;
        self.shared.wake.notify_one();
        loop {
            let left = state.left();
            let same = |state: &mut State| state.left() != 0 && state.left() == left;
            let waited = self.shared.written.wait_timeout_while(state, PATIENCE, same);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.left() == 0 || state.left() == left {
                state.flushing -= 1;
                return state.left() == 0;
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.wake.notify_one();
    }
}

/// Each write is taken for a line. It never fails: a lost line is counted here.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    /// What is still to be written; a loss that is not yet told counts too.
    fn left(&self) -> usize {
        self.waiting.len() + self.writing + usize::from(self.lost > 0)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer's thread.
    fn write(&self, mut output: impl Write, told: impl Fn(u64)) {
        let mut batch = Vec::new();
        while self.take(&mut batch) {
            self.write_batch(&mut output, &batch);
            batch.clear();
            batch.shrink_to(KEPT);
            if let Some(lost) = self.loss() {
                told(lost);
            }
            self.rest();
        }
    }

    /// Sleeps until there is something to write, and takes it; false at the end.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        let mut state = self.state();
        while state.waiting.is_empty() && state.lost == 0 {
            if state.ended {
                return false;
            }
            state.writer = Writer::Asleep;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.writer = Writer::Awake;
        mem::swap(batch, &mut state.waiting);
        state.writing = batch.len();
        true
    }

    /// Lines that are to be told as lost: that is a line too, so there must be room for it.
    fn loss(&self) -> Option<u64> {
        let mut state = self.state();
        (state.lost > 0 && state.waiting.len() <= LIMIT / 2).then(|| mem::take(&mut state.lost))
    }

    fn write_batch(&self, output: &mut impl Write, batch: &[u8]) {
        let mut rest = batch;
        while !rest.is_empty() {
            match output.write(&rest[..whole_lines(rest)]) {
                Ok(count @ 1..) => {
                    rest = &rest[count..];
                    self.wrote(rest.len());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Another process that shares the output has made it so.
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(REST),
                // Nobody is there any more to be told of it.
                Ok(0) | Err(_) => {
                    LOST.inc_by(memchr::memchr_iter(b'\n', rest).count() as u64);
                    rest = &[];
                }
            }
        }
        let _ = output.flush();
        self.wrote(0);
    }

    fn wrote(&self, left: usize) {
        let mut state = self.state();
        state.writing = left;
        if state.flushing > 0 {
            self.written.notify_all();
        }
    }

    fn rest(&self) {
        let mut state = self.state();
        if state.flushing > 0 {
            self.written.notify_all();
        }
        if state.writer == Writer::Awake {
            state.writer = Writer::Resting;
        }
        let rests = |state: &mut State| state.writer == Writer::Resting && state.flushing == 0 && !state.ended;
        drop(self.wake.wait_timeout_while(state, REST, rests));
    }
}

/// How much of a text of lines is written at once: as many whole lines as a pipe takes as a whole, or one that is longer.
fn whole_lines(text: &[u8]) -> usize {
    if text.len() <= WHOLE {
        return text.len();
    }
    let end = memchr::memrchr(b'\n', &text[..WHOLE]).or_else(|| memchr::memchr(b'\n', text));
    end.map_or(text.len(), |end| end + 1)
}

#[cfg(test)]
mod tests;
