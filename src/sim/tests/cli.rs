//! The command line.

use clap::Parser;

use crate::sim::{Mode, Options, RunError, run};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn options(words: &[&str]) -> Result<Options, clap::Error> {
    Ok(Line::try_parse_from([&["sim"], words].concat())?.options)
}

#[test]
fn options_read_durations_and_modes() {
    let read = options(&["--mode", "read", "--ping-interval", "500ms", "--token-delay", "1.5", "--boot-delay", "30s"]);
    let read = read.unwrap();
    assert_eq!(read.mode, Mode::Read);
    let times = [read.ping_interval, read.token_delay, read.boot_delay].map(|time| time.as_millis());
    assert_eq!(times, [500, 1500, 30_000]);
    for wrong in [["--token-delay", "fast"], ["--token-delay", "-1"], ["--mode", "push"]] {
        assert!(options(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn prefix_caches_and_rates_are_off_unless_asked_for() {
    let read = |words: &[&str]| {
        let read = options(words).unwrap();
        (read.cache_tokens, read.prefill_rate, read.prompt_tokens_details)
    };
    assert_eq!(read(&[]), (0, 0, false));
    assert_eq!(
        read(&["--cache-tokens", "65536", "--prefill-rate", "8000", "--prompt-tokens-details"]),
        (65_536, 8000, true)
    );
}

#[tokio::test]
async fn engines_run_until_told_to_stop() {
    let nowhere = ["--registration", "127.0.0.1:9", "--prefill", "2", "--control-port", "0"];
    run(options(&nowhere).unwrap(), std::future::ready(())).await.unwrap();
    let wrong = options(&["--dp", "2", "--tp", "2"]).unwrap();
    assert!(matches!(run(wrong, std::future::ready(())).await, Err(RunError::Engine { number: 0, .. })));
    let wide = ["--registration", "127.0.0.1:9", "--hosts", "127.0.5.1,127.0.5.2", "--dp", "4", "--children-serve"];
    let wide = options(&wide).unwrap();
    assert_eq!((wide.hosts.len(), wide.children_serve), (2, true));
    run(wide, std::future::ready(())).await.unwrap();
}
