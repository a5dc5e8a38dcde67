//! What `bench/run` measures with, in one program: lean engines that cost little, the floor of what a relay between them can
//! cost, and a load generator. Each runs on one thread, but for large
//! bodies that engines read apart.

mod clock;
mod engines;
mod floor;
mod load;
mod register;
mod spread;
mod stamps;
mod wire;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

/// Engines, a floor and load for bench/run
#[derive(Parser)]
enum Command {
    /// Engines that answer at once, or a token each so often
    Engines(engines::Options),
    /// A relay of two legs that reads nothing
    Floor(floor::Options),
    /// Requests in a closed loop; prints what came of them as JSON
    Load(load::Options),
}

async fn run(command: Command) -> io::Result<()> {
    match command {
        Command::Engines(options) => engines::run(options).await,
        Command::Floor(options) => floor::run(options).await,
        Command::Load(options) => load::run(options).await,
    }
}

fn main() -> ExitCode {
    let command = Command::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.and_then(|runtime| {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, run(command))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "moriio-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
