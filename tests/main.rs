//! One binary for all tests over sockets.

mod support;

mod deploy;
mod exchange;
mod process;
mod tidy;
