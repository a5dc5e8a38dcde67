//! One binary for all tests over sockets.

mod support;

mod exchange;
mod failure;
mod load;
mod pool;
mod relay;
