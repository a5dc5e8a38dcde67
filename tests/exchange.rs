//! Exchanges that go well: every mode, dialect, size and API, with the text compared to one undivided engine's.

use moriio_proxy::sim::Mode;

use crate::support::{Plan, generate};

#[tokio::test(flavor = "multi_thread")]
async fn first_light() {
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).start().await;
        for stream in [false, true] {
            generate(
                &world.proxy,
                "a prompt of some length, so that it has blocks: one two three four five six seven eight",
                12,
                stream,
            )
            .await;
        }
        world.settle().await;
    }
}
