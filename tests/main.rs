//! One binary for all tests over sockets.

mod support;

mod exchange;
mod fuzz;
mod hostile_http;
mod hostile_zmq;
mod model;
mod prior_art;
