//! One binary for all tests over sockets.

mod support;

mod exchange;
mod hostile_http;
