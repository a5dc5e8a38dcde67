//! One binary for all tests over sockets.

mod support;

mod exchange;
mod kv_safety;
mod matrix;
mod chaos;
mod peers;
