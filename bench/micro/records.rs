//! An exchange's account with its log line, which goes nowhere.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use divan::Bencher;
use moriio_proxy::exchange::record::Exchange;
use moriio_proxy::metrics::Metrics;
use moriio_proxy::routing::{Demand, Selector};
use moriio_proxy::settings::PickRules;
use tracing::Subscriber;

use super::support::pool;

fn account(bencher: Bencher, log: impl Subscriber + Send + Sync + 'static) {
    let (pool, metrics) = (pool(2), Arc::new(Metrics::new()));
    let selector = Selector::new(PickRules::default());
    tracing::subscriber::with_default(log, || {
        bencher
            .with_inputs(|| {
                let id = Some(String::from("cmpl-17b4a2c8"));
                let mut exchange = Exchange::open(metrics.clone(), "/v1/chat/completions", id);
                let picked = selector.pick(&pool, Demand::default(), &[], Instant::now()).expect("a pair");
                exchange.attempt(&picked, "tx-0123456789abcdef0123456789abcdef");
                exchange.first_output();
                exchange.committed(200);
                exchange.complete();
                exchange
            })
            .bench_local_values(drop);
    });
}

#[divan::bench]
fn without_a_line(bencher: Bencher) {
    account(bencher, tracing::subscriber::NoSubscriber::default());
}

#[divan::bench]
fn line_as_text(bencher: Bencher) {
    account(bencher, tracing_subscriber::fmt().with_writer(io::sink).with_ansi(false).finish());
}

#[divan::bench]
fn line_as_json(bencher: Bencher) {
    account(bencher, tracing_subscriber::fmt().with_writer(io::sink).json().flatten_event(true).finish());
}
