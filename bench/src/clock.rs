//! The host's clock, and priority among its threads.

use std::io;

use rustix::process::setpriority_process;
use rustix::time::{ClockId, clock_gettime};

/// The nice value of whatever should disturb nobody.
const LAST: i32 = 19;

/// Nanoseconds of the monotonic clock, which is the same in all processes of a host.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // It begins at zero when the host starts.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Lets every other thread go before the calling one.
pub(crate) fn step_back() -> io::Result<()> {
    Ok(setpriority_process(None, LAST)?)
}
