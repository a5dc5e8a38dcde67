//! The system calls of a child, counted by tracing it as `strace` does: the counts in `/proc/PID/io` lack most of what a socket
//! is read and waited for with. Whoever starts a process may trace it, unless the machine forbids that (a `ptrace_scope` of 2
//! or more) or somebody does so already; then the test fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Counts until the child ends.
pub struct Calls(Arc<AtomicUsize>);

impl Calls {
    /// All of the child's first thread, which of a proxy with one worker is the one that serves clients. The others are idle,
    /// but for the log's, and how many lines that writes at once is a matter of time.
    pub fn of_first_thread(child: u32) -> Calls {
        let traced = Pid::from_raw(i32::try_from(child).unwrap());
        let stops = Arc::<AtomicUsize>::default();
        let (counted, (begins, begun)) = (stops.clone(), mpsc::channel());
        // Only the thread that has begun to trace may go on with it.
        thread::spawn(move || {
            let seized = ptrace::seize(traced, Options::PTRACE_O_TRACESYSGOOD).and_then(|()| ptrace::interrupt(traced));
            begins.send(seized).unwrap();
            while seized.is_ok() && goes_on(traced, &counted) {}
        });
        begun.recv().unwrap().expect("a child may be traced");
        Calls(stops)
    }

    /// The number so far. The child stops at the beginning and at the end of each.
    pub fn so_far(&self) -> usize {
        self.0.load(Ordering::SeqCst) / 2
    }
}

/// Has the child go on from its next stop; false once it has ended.
fn goes_on(traced: Pid, stops: &AtomicUsize) -> bool {
    let signal = match waitpid(traced, Some(WaitPidFlag::__WALL)) {
        Ok(WaitStatus::PtraceSyscall(_)) => {
            stops.fetch_add(1, Ordering::SeqCst);
            None
        }
        Ok(WaitStatus::PtraceEvent(..)) => None,
        Ok(WaitStatus::Stopped(_, signal)) => Some(signal),
        _ => return false,
    };
    ptrace::syscall(traced, signal).is_ok()
}
