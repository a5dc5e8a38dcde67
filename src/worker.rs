//! Which of the threads that serve clients this one is.

use std::cell::Cell;

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

/// The number of this thread among those that serve clients: 0 for the first, and for every other thread. What each of them has
/// of its own is found by it.
#[must_use]
pub fn index() -> usize {
    INDEX.get()
}

/// Makes this thread the one of that number, for good.
pub(crate) fn becomes(index: usize) {
    INDEX.set(index);
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_thread_has_its_own_number() {
        let worker = std::thread::spawn(|| {
            super::becomes(3);
            super::index()
        });
        assert_eq!((worker.join().unwrap(), super::index()), (3, 0));
    }
}
