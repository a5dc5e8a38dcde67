//! One binary for all tests over sockets.

mod support;

mod deploy;
mod exchange;
mod kv_safety;
mod matrix;
mod chaos;
mod peers;
mod process;
mod tidy;
mod failure;
mod load;
mod pool;
mod relay;
