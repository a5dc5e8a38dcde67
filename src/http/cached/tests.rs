use std::convert::Infallible;

use futures::{FutureExt, stream};
use http_body_util::{BodyExt, StreamBody};

use super::*;

/// A body that comes in these parts.
fn coming(parts: Vec<Bytes>) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
    StreamBody::new(stream::iter(parts.into_iter().map(|part| Ok(Frame::data(part)))))
}

async fn passed(text: &str, step: usize, is_events: bool, told: Option<u64>) -> String {
    let parts = text.as_bytes().chunks(step).map(Bytes::copy_from_slice).collect();
    let (tell, hear) = oneshot::channel();
    match told {
        Some(tokens) => tell.send(tokens).unwrap(),
        None => drop(tell),
    }
    let body = Watched::new(coming(parts), (Api::Chat, is_events), Purpose::Tell(Told::by(hear)), |_, _| {})
        .collect()
        .await
        .unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

const STREAM: &str = ": alive\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\"\\n\"}}],\"usage\":null}\n\nevent: x\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":9@}}\n\ndata: [DONE]\n\n";

#[tokio::test]
async fn a_usage_is_told_wherever_a_stream_is_cut() {
    let before = STREAM.replace('@', ",\"prompt_tokens_details\":{\"cached_tokens\":8}");
    let after = STREAM.replace('@', ",\"prompt_tokens_details\":{\"cached_tokens\":5}");
    let unknown = STREAM.replace('@', ",\"prompt_tokens_details\":{}");
    for step in 1..=before.len() {
        assert_eq!(passed(&before, step, true, Some(5)).await, after, "{step}");
        assert_eq!(passed(&before, step, true, None).await, unknown, "{step}");
    }
}

#[tokio::test]
async fn a_whole_answer_is_told_at_its_end() {
    let of = |details: &str| {
        format!("{{\"choices\":[{{\"text\":\"a\\n\\nb\"}}],\"usage\":{{\"prompt_tokens\":9{details}}}}}")
    };
    for step in 1..=of("").len() {
        let after = of(",\"prompt_tokens_details\":{\"cached_tokens\":5}");
        assert_eq!(passed(&of(""), step, false, Some(5)).await, after, "{step}");
        assert_eq!(passed(&of(""), step, false, None).await, of(""), "{step}");
    }
}

/// A parse of so much would hold up what the same thread serves.
#[tokio::test]
async fn a_large_answer_is_looked_at_apart() {
    let text = "a".repeat(LARGE);
    let of =
        |details: &str| format!("{{\"choices\":[{{\"text\":\"{text}\"}}],\"usage\":{{\"prompt_tokens\":9{details}}}}}");
    for is_events in [true, false] {
        let event = |text: String| if is_events { format!("data: {text}\n\n") } else { text };
        let (tell, hear) = oneshot::channel();
        tell.send(5).unwrap();
        let parts = vec![Bytes::from(event(of("")))];
        let mut body = Watched::new(coming(parts), (Api::Chat, is_events), Purpose::Tell(Told::by(hear)), |_, _| {});
        assert!(body.frame().now_or_never().is_none());
        let wanted = event(of(",\"prompt_tokens_details\":{\"cached_tokens\":5}"));
        assert!(body.collect().await.unwrap().to_bytes() == wanted);
    }
}

/// What breaks off, and an event without an end, pass as far as they came.
#[tokio::test]
async fn what_has_no_end_passes_as_it_is() {
    for text in ["", "data: {\"usage\":{", "data: {\"a\":1}\n", "{\"usage\"", "event: error\ndata: {\"error\":{}}\n\n"]
    {
        for is_events in [true, false] {
            assert_eq!(passed(text, 3, is_events, Some(5)).await, text);
        }
    }
}

/// Several lines of data are no JSON here, and a last line may lack its end.
#[tokio::test]
async fn events_of_other_forms_pass_or_are_told() {
    let lines = "data: {\"a\":1,\ndata: \"usage\":{}}\n\n: no data \"usage\":{}\n\ndata: {\"usage\":{}";
    let told = "data: {\"usage\":{\"prompt_tokens_details\":{\"cached_tokens\":5}}}";
    for step in [1, 7, 1000] {
        assert_eq!(
            passed(&format!("{lines}}}"), step, true, Some(5)).await,
            lines.replace("data: {\"usage\":{}", told)
        );
        assert_eq!(passed(lines, step, true, Some(5)).await, lines);
    }
    let crlf = "event: x\r\ndata: {\"usage\":{}}\r\n\r\ndata: [DONE]\r\n\r\n";
    let wanted = crlf.replace("{\"usage\":{}}", &told["data: ".len()..]);
    assert_eq!(passed(crlf, 3, true, Some(5)).await, wanted);
}

/// After the first nobody waits any more, and a number that comes later is told.
#[tokio::test(start_paused = true)]
async fn a_late_number_is_told_from_then_on() {
    let parts = vec![Bytes::from_static(b"data: {\"usage\":{}}\n\n"); 3];
    let (tell, hear) = oneshot::channel();
    let mut body = Watched::new(coming(parts), (Api::Chat, true), Purpose::Tell(Told::by(hear)), |_, _| {});
    let from = tokio::time::Instant::now();
    let mut frame = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
    for _ in 0..2 {
        assert_eq!(frame().await, "data: {\"usage\":{}}\n\n");
    }
    assert_eq!(from.elapsed().as_secs(), GRACE.as_secs());
    tell.send(3).unwrap();
    assert_eq!(frame().await, "data: {\"usage\":{\"prompt_tokens_details\":{\"cached_tokens\":3}}}\n\n");
}

/// What is only heard passes as it is, and silence is heard at the end.
#[tokio::test]
async fn what_an_engine_tells_is_heard() {
    let with = "data: {\"usage\":{\"prompt_tokens\":9,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n";
    for (text, told) in [(with, Some((4, 9))), ("data: {\"usage\":{}}\n\n", None), ("", None)] {
        let (tell, heard) = std::sync::mpsc::channel();
        let hear: Hear = Box::new(move |told| tell.send(told).unwrap());
        let parts = text.as_bytes().chunks(5).map(Bytes::copy_from_slice).collect();
        let body = Watched::new(coming(parts), (Api::Chat, true), Purpose::Hear(Some(hear)), |_, _| panic!("as it is"));
        assert_eq!(body.collect().await.unwrap().to_bytes(), text);
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [told]);
    }
}

/// What comes before the usage does not wait for prefill, and the usage not for ever.
#[tokio::test(start_paused = true)]
async fn only_the_usage_waits_for_prefill() {
    for tells in [true, false] {
        let parts = ["data: {\"choices\":[1]}\n\n", "data: {\"usage\":{}}\n\ndata: [DONE]\n\n"];
        let parts = parts.map(|part| Bytes::from_static(part.as_bytes())).to_vec();
        let (tell, hear) = oneshot::channel();
        let mut body = Watched::new(coming(parts), (Api::Chat, true), Purpose::Tell(Told::by(hear)), |_, _| {});
        let mut frame = async || String::from_utf8(body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec());
        assert_eq!(frame().now_or_never().unwrap().unwrap(), "data: {\"choices\":[1]}\n\n");
        assert!(frame().now_or_never().is_none());
        let (usage, waited) = match tells {
            true => ("{\"prompt_tokens_details\":{\"cached_tokens\":3}}", Duration::ZERO),
            false => ("{}", GRACE),
        };
        let from = tokio::time::Instant::now();
        // One that neither answers nor ends.
        let _kept = if tells { tell.send(3).ok().map(|()| None) } else { Some(Some(tell)) };
        assert_eq!(frame().await.unwrap(), format!("data: {{\"usage\":{usage}}}\n\ndata: [DONE]\n\n"));
        assert!(from.elapsed() >= waited && from.elapsed() < waited + GRACE, "{:?}", from.elapsed());
    }
}

#[tokio::test]
async fn what_is_too_long_to_be_kept_passes() {
    let part = Bytes::from(vec![b'a'; MOST / 4]);
    let last = Bytes::from_static(b"\n\ndata: {\"usage\":{}}\n\n");
    for is_events in [true, false] {
        let mut parts = vec![part.clone(); 6];
        parts.push(last.clone());
        let (_tell, hear) = oneshot::channel();
        let mut body = Watched::new(coming(parts), (Api::Chat, is_events), Purpose::Tell(Told::by(hear)), |_, _| {});
        let (mut bytes, mut most) = (0, 0);
        while let Some(frame) = body.frame().await {
            bytes += frame.unwrap().into_data().unwrap().len();
            most = most.max(body.events.held());
        }
        assert_eq!(bytes, 6 * part.len() + last.len());
        assert!(most <= MOST);
    }
}
