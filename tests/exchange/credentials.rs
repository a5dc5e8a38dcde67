//! Whose credential reaches whom.

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::Mode;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::support::{Answer, Plan, World, client, completion};

fn headers(list: &[(&str, &str)]) -> HeaderMap {
    let pairs =
        list.iter().map(|(name, value)| (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap()));
    pairs.collect()
}

async fn ask(world: &World, sent: &[(&str, &str)]) -> Answer {
    let request = client().post(world.proxy.url("/v1/completions")).headers(headers(sent));
    Answer::of(request.body(completion("some words", 3, false).to_string()).send().await.unwrap()).await
}

/// Asks, and compares what both legs carry.
async fn reaches(world: &World, sent: &[(&str, &str)], wanted: Option<&str>) {
    let before: Vec<usize> = world.engines().map(|engine| engine.legs().len()).collect();
    let answer = ask(world, sent).await;
    assert_eq!(answer.status, 200, "{sent:?} {}", answer.body);
    for (engine, before) in world.engines().zip(before) {
        let legs = engine.legs();
        assert_eq!(legs.len(), before + 1);
        let found = |name: &str| legs[before].headers.iter().find(|(found, _)| found == name).map(|(_, v)| v.as_str());
        assert_eq!(found("authorization"), wanted, "{sent:?}");
        assert_eq!(found("x-api-key"), None, "{sent:?}");
        if sent.iter().any(|(name, _)| *name == "anthropic-version") {
            assert_eq!(found("anthropic-version"), Some("2023-06-01"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_that_clients_must_present_ends_at_the_proxy() {
    let key = (Key::ApiKey, "open-sesame");
    for engines in [None, Some("for-engines")] {
        let mut plan = Plan::new(Mode::Read).with(key.0, key.1);
        if let Some(engines) = engines {
            plan = plan.with(Key::OpenaiApiKey, engines);
        }
        let world = plan.start().await;
        for sent in [
            &[][..],
            &[("authorization", "Bearer wrong")],
            &[("authorization", "open-sesame")],
            &[("authorization", "Basic open-sesame")],
            &[("authorization", "Bearer open-sesame2")],
            &[("x-api-key", "wrong")],
            &[("x-api-key", "Bearer open-sesame")],
            &[("authorization", "Bearer wrong"), ("x-api-key", "")],
        ] {
            let answer = ask(&world, sent).await;
            assert_eq!((answer.status, answer.code().as_str()), (401, "invalid_api_key"), "{sent:?}");
            assert!(!answer.body.contains("sesame"));
        }
        assert_eq!(world.total(|c| c.legs), 0);
        let wanted = engines.map(|key| format!("Bearer {key}"));
        for sent in [
            &[("authorization", "Bearer open-sesame")][..],
            &[("authorization", "bearer open-sesame")],
            &[("authorization", "BEARER   open-sesame")],
            &[("x-api-key", "open-sesame"), ("anthropic-version", "2023-06-01")],
            &[("authorization", "Bearer wrong"), ("x-api-key", "open-sesame")],
            &[("authorization", "Bearer open-sesame"), ("x-api-key", "wrong")],
        ] {
            reaches(&world, sent, wanted.as_deref()).await;
        }
        assert_eq!(client().get(world.proxy.url("/v1/models")).send().await.unwrap().status(), 401);
        let models = client().get(world.proxy.url("/v1/models/sim-model")).header("x-api-key", "open-sesame");
        assert_eq!(models.send().await.unwrap().status(), 200);
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_of_the_proxys_the_clients_own_goes_to_both_engines() {
    let world = Plan::new(Mode::Write).with(Key::OpenaiApiKey, "for-engines").start().await;
    let own = Some("Bearer my-own");
    reaches(&world, &[], Some("Bearer for-engines")).await;
    reaches(&world, &[("authorization", "Bearer my-own")], own).await;
    reaches(&world, &[("authorization", "bearer  my-own")], own).await;
    reaches(&world, &[("authorization", "Custom x=y")], Some("Custom x=y")).await;
    reaches(&world, &[("x-api-key", "my-own"), ("anthropic-version", "2023-06-01")], own).await;
    reaches(&world, &[("authorization", "Bearer my-own"), ("x-api-key", "other")], own).await;
    world.settle().await;
    let world = Plan::new(Mode::Read).start().await;
    reaches(&world, &[], None).await;
    reaches(&world, &[("x-api-key", "my-own")], own).await;
    world.settle().await;
}
