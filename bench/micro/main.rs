//! What single steps cost, without sockets. `cargo bench` runs all, `cargo bench -- NAME` those whose names have it.

mod answers;
mod bodies;
mod picks;
mod prefixes;
mod records;
mod registrations;
mod support;
mod transfers;

fn main() {
    divan::main();
}
