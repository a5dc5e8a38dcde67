//! Those that start a proxy in Python: the files of `deploy/` under its name.

use std::path::Path;
use std::time::Duration;

use moriio_proxy::sim::{Mode, expected_text};
use serde_json::{Value, json};

use super::{Router, engines, engines_are_healthy, evaluated, free_ports, paced, started, streamed, unharmed};
use crate::support::Plan;
use crate::support::binary::BINARY;

/// `python3 FILE` with these arguments, the binary beside a copy of the file.
fn python(file: &str, variables: &str, arguments: &str, port: u16) -> Router {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    let script = format!(
        "cp {} $(dirname $LOG) && export MORIIO_PROXY_BINARY={BINARY} PROXY_HOST=127.0.0.1 {variables} && \
         exec python3 $(dirname $LOG)/{file} {arguments} > $LOG 2>&1",
        source.display()
    );
    Router::start("-c", &script, port)
}

/// Their answers have one token fewer than was asked for.
fn one_fewer((body, prompt, tokens): (Value, Value, usize)) -> (Value, Value, usize) {
    (body, prompt, (tokens - 1).max(1))
}

/// Its line within 15 s, then a pause, the completion without a model, the load.
#[tokio::test(flavor = "multi_thread")]
async fn mad_proxy() {
    let [port, registration] = free_ports();
    let engines = engines(Mode::Write, 8, registration).await;
    let [prefill, decode] = [0, 1].map(|index: usize| engines[index].http_address());
    let arguments = format!(
        "--port {port} --discovery-port {registration} --use-discovery --dp-size-local 8 --log-level DEBUG \
         --max-concurrency 512 --route-dp-size 8 --expect-prefill 1 --expect-decode 1 --prefill http://{prefill} \
         --decode http://{decode}"
    );
    let mut router = python("moriio_pd_proxy.py", "PROXY_TYPE=moriio_toy PROXY_PORT=10001", &arguments, port);
    let listens = async |router: &Router| router.output().contains("ZMQ discovery listening");
    router.poll(1.0, 15.0, "line of the gate", listens).await;
    assert!(!router.output().contains("Address already in use"), "{}", router.output());
    assert_eq!(router.get("/health", 5.0).await, Some(200));
    router.poll(20.0, 60.0, "pair", async |router| router.get("/ready", 5.0).await == Some(200)).await;
    let body = json!({"prompt": "San Francisco is a", "temperature": 0, "max_tokens": 10, "top_k": 1});
    let answer = router.post("/v1/completions", &body).await;
    assert_eq!((answer.status, answer.text()), (200, expected_text(&body["prompt"], 9)), "{}", answer.body);
    router.load(48, 16, |index| one_fewer(streamed(index))).await;
    assert!(!router.output().contains("engine is not as the command line says"), "{}", router.output());
    unharmed(&engines).await;
    router.terminate(Duration::from_secs(10)).await;
}

/// Never polled: the engines' `/health`, then lm_eval's and the benchmark's requests; SIGTERM.
#[tokio::test(flavor = "multi_thread")]
async fn vllm_ci_proxy() {
    let [port, registration] = free_ports();
    let variables = format!("PROXY_IP=127.0.0.1 PROXY_PORT={port} PROXY_PING_PORT={registration} PROXY_SCRIPT=x.py");
    let mut router = python("moriio_proxy.py", &variables, &format!("--port {port}"), port);
    router.is_up().await;
    let engines = engines(Mode::Write, 1, registration).await;
    engines_are_healthy(&mut router, &engines, 10.0, 2400.0).await;
    router.load(64, 64, |index| one_fewer(evaluated(index))).await;
    router.load(32, 32, |index| one_fewer(streamed(index))).await;
    unharmed(&engines).await;
    router.terminate(Duration::from_secs(10)).await;
}

/// Before it took vllm-router: variables only, `/health` 200 from the start, engines of the older wording, `pkill -f`.
#[tokio::test(flavor = "multi_thread")]
async fn inference_x_history() {
    let [port, registration] = free_ports();
    let variables = format!("PROXY_HTTP_PORT={port} PROXY_PING_PORT={registration} PROXY_STREAM_IDLE_TIMEOUT=300");
    let mut router = python("moriio_proxy.py", &variables, "", port);
    router.is_up().await;
    tokio::time::sleep(paced(3.0)).await;
    assert_eq!(router.get("/health", 2.0).await, Some(200), "from the start");
    // READ never gives prefill's blocks back on these releases.
    let mut plan = Plan::new(Mode::Write);
    plan.release = "0.18.1";
    let engines = started(&plan, registration).await;
    engines_are_healthy(&mut router, &engines, 10.0, 1800.0).await;
    router.load(64, 32, |index| one_fewer(streamed(index))).await;
    unharmed(&engines).await;
    // By the words of its command line, in which the file's path stands.
    let words = router.folder.path().join("moriio_proxy");
    router.ends_by(&["pkill", "-f", words.to_str().unwrap()], Duration::from_secs(10)).await;
}
