//! Those that start vllm-router.

use moriio_proxy::sim::Mode;
use serde_json::json;

use super::{Router, engines, engines_are_healthy, evaluated, free_ports, on_path, paced, streamed, unharmed};
use crate::support::Answer;
use crate::support::binary::command_at;
use crate::support::client::passing;
use std::time::Duration;

const MORIIO: &str = "--vllm-pd-disaggregation --kv-connector moriio";

fn policies(name: &str) -> String {
    format!("--policy {name} --prefill-policy {name} --decode-policy {name}")
}

/// Engines first. Both lines in the output, by polls of 5 s; then a completion that names no model, three chats, the load.
#[tokio::test(flavor = "multi_thread")]
async fn mad_router() {
    let [port, registration] = free_ports();
    let folder = on_path();
    let help = command_at(&folder.path().join("vllm-router"), &["--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("moriio") && help.contains("--moriio-dp-size"), "{help}");
    let engines = engines(Mode::Write, 8, registration).await;
    let [prefill, decode] = [0, 1].map(|index: usize| engines[index].http_address());
    let mut router = Router::start(
        "-c",
        &format!(
            "vllm-router --host 0.0.0.0 --port {port} {MORIIO} --prefill http://{prefill} --decode http://{decode} \
             --vllm-discovery-address 0.0.0.0:{registration} --intra-node-data-parallel-size 8 --moriio-dp-size 8 {} \
             --log-level info --prometheus-port 0",
            policies("round_robin")
        ),
        port,
    );
    let both = async |router: &Router| ["Add Prefill", "Add Decode"].iter().all(|line| router.output().contains(line));
    router.poll(5.0, 300.0, "Add lines", both).await;
    router.completes(10).await;
    for _ in 0..3 {
        let chat = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 200, "temperature": 0});
        let answer = router.post("/v1/chat/completions", &chat).await;
        assert_eq!((answer.status, answer.json()["usage"]["completion_tokens"].as_u64()), (200, Some(200)));
    }
    router.load(48, 16, streamed).await;
    assert!(!router.output().contains("engine is not as the command line says"), "{}", router.output());
    unharmed(&engines).await;
    router.terminate(Duration::from_secs(10)).await;
}

/// Before the engines, by bash in a container with a high limit on time; up to four completions until one is an answer.
#[tokio::test(flavor = "multi_thread")]
async fn ep16_launch() {
    let [port, registration] = free_ports();
    let mut router = Router::start(
        "-lc",
        &format!(
            "vllm-router --host 0.0.0.0 --port {port} {MORIIO} --vllm-discovery-address 0.0.0.0:{registration} {} \
             --log-level info --intra-node-data-parallel-size 8 --worker-startup-timeout-secs 3600 \
             --max-concurrent-requests 1024 --request-timeout-secs 3600 --retry-max-retries 1",
            policies("round_robin")
        ),
        port,
    );
    router.is_up().await;
    let engines = engines(Mode::Write, 16, registration).await;
    engines_are_healthy(&mut router, &engines, 5.0, 60.0).await;
    let mut tries = 0;
    let body = json!({"prompt": "hi", "max_tokens": 8, "temperature": 0});
    while !router.post("/v1/completions", &body).await.body.contains("text_completion") {
        tries += 1;
        assert!(tries < 4, "{}", router.output());
        tokio::time::sleep(paced(60.0)).await;
    }
    router.load(32, 32, streamed).await;
    assert!(!router.output().contains("engine is not as the command line says"), "{}", router.output());
    unharmed(&engines).await;
    router.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kimi_k3_recipe() {
    let [port, registration] = free_ports();
    let engines = engines(Mode::Write, 8, registration).await;
    let [prefill, decode] = [0, 1].map(|index: usize| engines[index].http_address());
    let mut router = Router::start(
        "-lc",
        &format!(
            "exec vllm-router --host 0.0.0.0 --port {port} {MORIIO} --prefill http://{prefill} --decode http://{decode} \
             --vllm-discovery-address 0.0.0.0:{registration} --moriio-dp-size 8 {}",
            policies("round_robin")
        ),
        port,
    );
    router.poll(5.0, 60.0, "health", async |router| router.get("/health", 5.0).await == Some(200)).await;
    router.completes(10).await;
    unharmed(&engines).await;
    router.remove().await;
}

/// Before the engines; `/health` every 10 s, 503 is waited for; then each engine's, and load at once. An exit fails the job.
#[tokio::test(flavor = "multi_thread")]
async fn srt_slurm() {
    let [port, registration] = free_ports();
    let mut router = Router::start(
        "-c",
        &format!(
            "export VLLM_LOGGING_LEVEL=INFO && true && vllm-router {MORIIO} --vllm-discovery-address 0.0.0.0:{registration} \
             --host 0.0.0.0 --port {port} --intra-node-data-parallel-size 8 --worker-startup-timeout-secs 1800 \
             --disable-retries --request-id-headers x-a --request-id-headers x-b --worker-startup-timeout-secs 60"
        ),
        port,
    );
    router.is_up().await;
    assert_eq!(router.get("/health", 5.0).await, Some(503), "nothing to serve with");
    let engines = engines(Mode::Read, 8, registration).await;
    router.poll(10.0, 1800.0, "health", async |router| router.get("/health", 5.0).await == Some(200)).await;
    engines_are_healthy(&mut router, &engines, 10.0, 1800.0).await;
    let workers = passing().get(router.url("/workers")).send().await.unwrap();
    let stats = Answer::of(workers).await.json()["stats"].clone();
    assert_eq!(stats, json!({"prefill_count": 1, "decode_count": 1, "regular_count": 0}));
    router.load(64, 64, streamed).await;
    unharmed(&engines).await;
    router.terminate(Duration::from_secs(20)).await;
}

/// Before the engines, its output in a file; the engines' `/health` every 10 s, lm_eval's requests at once, `docker rm -f`.
#[tokio::test(flavor = "multi_thread")]
async fn vllm_ci_router() {
    futures::future::join_all([8, 1].map(|dp| async move {
        let [port, registration] = free_ports();
        let mut router = Router::start(
            "-lc",
            &format!(
                "exec vllm-router {MORIIO} --vllm-discovery-address 0.0.0.0:{registration} --port {port} --host 0.0.0.0 \
                 --intra-node-data-parallel-size {dp} {} --log-level info > $LOG 2>&1",
                policies("round_robin")
            ),
            port,
        );
        router.is_up().await;
        let engines = engines(Mode::Write, dp, registration).await;
        engines_are_healthy(&mut router, &engines, 10.0, 2400.0).await;
        router.load(64, 64, evaluated).await;
        router.load(32, 32, streamed).await;
        unharmed(&engines).await;
        router.remove().await;
    }))
    .await;
}

/// A barrier on the port, which must not close again; `/health` within 2 s every 30 s, which must not fall back; peers leave
/// when the port closes.
#[tokio::test(flavor = "multi_thread")]
async fn inference_x() {
    let [port, registration] = free_ports();
    let mut router = Router::start(
        "-lc",
        &format!(
            "mkdir -p $LOG.d/slurm_job-1 && exec vllm-router {MORIIO} --vllm-discovery-address 0.0.0.0:{registration} \
             --port {port} --host 0.0.0.0 {} --log-level info 2>&1 | tee $LOG.d/slurm_job-1/router.log",
            policies("consistent_hash")
        ),
        port,
    );
    router.poll(5.0, 1800.0, "port", async |router| router.accepts().await).await;
    let mut seen = Vec::new();
    seen.push(router.get("/health", 2.0).await);
    let engines = engines(Mode::Read, 1, registration).await;
    router
        .poll(30.0, 1800.0, "health", async |router| {
            seen.push(router.get("/health", 2.0).await);
            assert!(router.accepts().await, "the port has closed again");
            seen.last() == Some(&Some(200))
        })
        .await;
    assert_eq!(seen.first(), Some(&Some(503)));
    assert!(seen.iter().all(|status| matches!(status, Some(503 | 200))), "{seen:?}");
    router.load(64, 32, streamed).await;
    for _ in 0..3 {
        assert_eq!(router.get("/health", 2.0).await, Some(200));
        tokio::time::sleep(paced(10.0)).await;
    }
    router.load(16, 8, evaluated).await;
    unharmed(&engines).await;
    drop(engines);
    assert_eq!(router.get("/health", 2.0).await, Some(200), "it never falls back");
    router.remove().await;
}

/// No host; engines, their `/health`, then `/health` every 5 s, and twenty completions at once; both modes; TERM and 10 s.
#[tokio::test(flavor = "multi_thread")]
async fn router_e2e() {
    futures::future::join_all([Mode::Read, Mode::Write].map(|mode| async move {
        let [port, registration] = free_ports();
        let mut router = Router::start(
            "-c",
            &format!(
                "exec vllm-router --port {port} {} {MORIIO} --vllm-discovery-address 0.0.0.0:{registration} \
                 --worker-startup-check-interval 1",
                policies("consistent_hash")
            ),
            port,
        );
        let engines = engines(mode, 1, registration).await;
        engines_are_healthy(&mut router, &engines, 5.0, 900.0).await;
        router.poll(5.0, 180.0, "health", async |router| router.get("/health", 5.0).await == Some(200)).await;
        router.load(20, 20, evaluated).await;
        router.load(50, 10, evaluated).await;
        unharmed(&engines).await;
        router.terminate(Duration::from_secs(10)).await;
    }))
    .await;
}

/// vLLM's documentation names no port; a single-node script waits for both lines.
#[tokio::test(flavor = "multi_thread")]
async fn the_docs_line() {
    let [port, registration] = free_ports();
    let line = format!("vllm-router {MORIIO} --vllm-discovery-address 0.0.0.0:{registration} --port {port}");
    let mut router = Router::start("-c", &line, port);
    let engines = engines(Mode::Write, 1, registration).await;
    let both = async |router: &Router| ["Add Prefill", "Add Decode"].iter().all(|line| router.output().contains(line));
    router.poll(5.0, 1200.0, "Add lines", both).await;
    router.completes(16).await;
    unharmed(&engines).await;
    router.remove().await;
}
