//! The demonstration: a proxy and four simulated engines for each transfer mode, all in this process and on loopback, with
//! requests whose every step is printed and checked. It then serves until it is stopped, so that one can try by hand.

use clap::Args;

use crate::sim::Mode;

mod paper;
mod scene;
mod stage;

use paper::Paper;
use scene::Scene;
use stage::{DemoError, Stage};

/// What the demonstration is told.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Options {
    /// Port of the proxy in WRITE mode; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// End after the show instead of serving until Ctrl-C
    #[arg(long)]
    pub no_wait: bool,
}

/// Shows everything, then serves until `stop`. `log` is called when the show is over: from then on log lines disturb nobody.
///
/// # Errors
/// When something did not start, did not happen in time or was not right.
pub async fn run(options: Options, stop: impl Future<Output = ()>, log: impl FnOnce()) -> Result<(), DemoError> {
    let paper = Paper::new();
    let mut stop = std::pin::pin!(stop);
    let stages = tokio::select! {
        shown = show(&paper, options.port) => shown?,
        () = &mut stop => return Ok(()),
    };
    if !options.no_wait {
        invite(&paper, &stages);
        log();
        stop.await;
    }
    for stage in stages {
        stage.end().await;
    }
    Ok(())
}

/// Both modes, one after the other; each with a proxy of its own, since a pool has one mode.
async fn show(paper: &Paper, port: u16) -> Result<Vec<Stage>, DemoError> {
    paper.line(&paper.bold("moriio-proxy demo"));
    paper.line("Real sockets on loopback, simulated engines, no GPU. Decode's words come from the KV that reached it:");
    paper.line("a wrong peer, rank, id or block list would show as wrong text or as a hang.");
    let mut stages = Vec::new();
    let mut wrong = 0;
    for (mode, port) in [(Mode::Read, 0), (Mode::Write, port)] {
        paper.title(match mode {
            Mode::Read => "READ: prefill answers first, then decode pulls the KV",
            Mode::Write => "WRITE: both legs at once, prefill pushes the KV into decode",
        });
        let stage = Stage::set(paper, mode, port).await?;
        for scene in Scene::all() {
            wrong += scene.play(paper, &stage).await?;
        }
        wrong += stage.audit(paper).await;
        stages.push(stage);
    }
    match wrong {
        0 => Ok(stages),
        count => Err(DemoError::Wrong(count)),
    }
}

fn invite(paper: &Paper, stages: &[Stage]) {
    paper.title("Your turn");
    for stage in stages {
        paper.line(&format!("  {:<6} {}", stage.mode_name(), paper.bold(&stage.url(""))));
    }
    let Some(last) = stages.last() else { return };
    paper.line("");
    paper.line(&format!("  curl -N {} -H 'content-type: application/json' \\", last.url("/v1/completions")));
    paper.line(r#"    -d '{"model": "sim-model", "prompt": "Once upon a time", "max_tokens": 20, "stream": true}'"#);
    paper.line(&format!("  curl {}", last.url("/ready")));
    paper.line(&format!("  curl {}", last.url("/metrics")));
    paper.line("");
    paper.line("Serving until Ctrl-C; a line for each exchange follows.");
}
