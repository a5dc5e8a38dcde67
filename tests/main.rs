//! One binary for all tests over sockets.

mod support;

mod chaos;
mod deploy;
mod exchange;
mod failure;
mod fuzz;
mod hostile_http;
mod hostile_zmq;
mod kv_safety;
mod kv_timing;
mod launchers;
mod load;
mod matrix;
mod model;
mod peers;
mod pool;
mod prior_art;
mod process;
mod relay;
mod routing;
mod siblings;
mod tidy;
mod transfer;
mod wide;
