use std::sync::Arc;

use futures::stream;

use super::*;
use crate::metrics::Metrics;

/// A stream of one sibling that says these events.
fn together(events: &[&'static str], metrics: &Arc<Metrics>) -> Together {
    let parts = events.iter().map(|event| Ok::<_, std::convert::Infallible>(Bytes::from_static(event.as_bytes())));
    let body = Body::from_stream(stream::iter(parts.collect::<Vec<_>>()));
    let part = Part { index: 0, state: State::Reading(body), events: Events::default() };
    let exchange = Exchange::open(metrics.clone(), "completions", None);
    Together::new(vec![part], (Api::Completions, Shape { count: 1, choices: 1 }), exchange)
}

#[tokio::test]
async fn a_comment_is_no_output() {
    let metrics = Arc::new(Metrics::new());
    let data = "data: {\"choices\":[{\"index\":0,\"text\":\"a\"}]}\n\n";
    let mut together = together(&[": alive\n\n", data, "data: [DONE]\n\n"], &metrics);
    let mut seen = Vec::new();
    while let Some(frame) = together.frame().await {
        let text = String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap();
        seen.push((text, metrics.render().contains("first_byte_seconds_count 1\n")));
    }
    let wanted = [(": alive\n\n", false), (data, true), ("data: [DONE]\n\n", true)];
    assert_eq!(seen, wanted.map(|(text, output)| (text.to_owned(), output)));
    drop(together);
    assert!(metrics.render().contains("exchanges_total{ended=\"complete\"} 1\n"));
}
