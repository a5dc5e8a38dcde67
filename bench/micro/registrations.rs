//! An engine's ping.

use divan::{Bencher, black_box};
use moriio_proxy::registration::decode::decode;

use super::support::registration;

#[divan::bench]
fn decode_a_registration(bencher: Bencher) {
    let message = registration(0, "P", 8);
    bencher.bench(|| decode(black_box(&message)));
}
