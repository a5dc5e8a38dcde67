//! The command lines of launchers that start vllm-router.

use std::collections::BTreeMap;

use super::{Face, arguments, resolve};
use crate::engine::Role;
use crate::pool::tests::engine_of;

/// What a launcher's command line comes to: where it serves, where engines register, and the warnings.
fn check(line: &str, http: &str, discovery: &str, said: &[&str]) -> BTreeMap<String, String> {
    let called = arguments(line);
    assert_eq!(Face::of(&called), Face::VllmRouter, "{line}");
    let rest = line.split_once(' ').unwrap().1;
    let (config, warnings) = resolve(rest, &[]).unwrap_or_else(|text| panic!("{line}: {text}"));
    assert_eq!(config.parts.listen.http.to_string(), http, "{line}");
    assert_eq!(config.parts.listen.discovery.to_string(), discovery, "{line}");
    assert_eq!(warnings, said, "{line}");
    let effective: BTreeMap<String, String> = config.describe().into_iter().collect();
    assert_eq!(effective["decode-token-budget"], "exact");
    assert_eq!(effective["health-waits-for-pair"], "true");
    effective
}

const MORIIO: &str = "--vllm-pd-disaggregation --kv-connector moriio";
const DISCOVERY: &str = "--vllm-discovery-address 0.0.0.0:36367";

fn policies(name: &str) -> String {
    format!("--policy {name} --prefill-policy {name} --decode-policy {name}")
}

#[test]
fn amds_dissagregation_script() {
    let line = format!(
        "vllm-router --host 0.0.0.0 --port 30000 {MORIIO} --prefill http://10.0.0.1:20005 --prefill http://10.0.0.2:20005 \
         --decode http://10.0.0.3:20005 --decode http://10.0.0.4:20005 {DISCOVERY} --intra-node-data-parallel-size 8 \
         --moriio-dp-size 16 {} --log-level info --prometheus-port 29000",
        policies("round_robin")
    );
    let effective = check(&line, "0.0.0.0:30000", "0.0.0.0:36367", &[]);
    assert_eq!((&*effective["prefill-timeout"], &*effective["metrics-port"]), ("1800s", "29000"));
    // Its engines are over several hosts, of which none but the first is known.
    let (config, _) = resolve(line.split_once(' ').unwrap().1, &[]).unwrap();
    let hosts = |ranks| {
        let says = engine_of(1, Role::Prefill, ranks, 1).registration.clone();
        config.parts.spans.of(&says).map(|hosts| (hosts.all().len(), hosts.local(), hosts.is_repeated()))
    };
    assert_eq!([1, 8, 12, 16, 32].map(hosts), [None, None, None, Some((2, 8, true)), None]);
}

#[test]
fn the_ep16_launch() {
    for port in [36367, 36382, 36390] {
        let line = format!(
            "vllm-router --host 0.0.0.0 --port 10001 {MORIIO} --vllm-discovery-address 0.0.0.0:{port} {} --log-level info \
             --intra-node-data-parallel-size 8 --worker-startup-timeout-secs 3600 --max-concurrent-requests 1024 \
             --request-timeout-secs 3600 --retry-max-retries 1",
            policies("round_robin")
        );
        let effective = check(&line, "0.0.0.0:10001", &format!("0.0.0.0:{port}"), &[]);
        for limit in ["prefill-timeout", "first-byte-timeout", "stream-idle-timeout", "answer-timeout", "cold-timeout"]
        {
            assert_eq!(effective[limit], "3600s", "{limit}");
        }
        assert_eq!((&*effective["max-in-flight"], &*effective["retries"]), ("1024", "0"));
    }
}

#[test]
fn the_kimi_k3_recipe() {
    let line = format!(
        "vllm-router --host 0.0.0.0 --port 30000 {MORIIO} --prefill http://10.0.0.1:20005 --decode http://10.0.0.2:20005 \
         {DISCOVERY} --moriio-dp-size 8 {}",
        policies("round_robin")
    );
    check(&line, "0.0.0.0:30000", "0.0.0.0:36367", &[]);
}

#[test]
fn srt_slurm() {
    let base = format!(
        "vllm-router {MORIIO} {DISCOVERY} --host 0.0.0.0 --port 8000 --intra-node-data-parallel-size 8 \
         --worker-startup-timeout-secs 1800"
    );
    check(&base, "0.0.0.0:8000", "0.0.0.0:36367", &[]);
    // What its users add may say again what it has said, and repeat lists and flags.
    let added = format!(
        "{base} --port 8001 --vllm-pd-disaggregation --worker-startup-timeout-secs 60 --disable-retries \
         --request-id-headers x-a --request-id-headers x-b"
    );
    let effective = check(&added, "0.0.0.0:8001", "0.0.0.0:36367", &[]);
    assert_eq!(effective["retries"], "0");
}

#[test]
fn vllms_pipeline() {
    for size in [8, 1] {
        let line = format!(
            "vllm-router {MORIIO} {DISCOVERY} --port 30000 --host 0.0.0.0 --intra-node-data-parallel-size {size} {} \
             --log-level info",
            policies("round_robin")
        );
        check(&line, "0.0.0.0:30000", "0.0.0.0:36367", &[]);
    }
}

#[test]
fn inference_x() {
    let line = format!(
        "vllm-router {MORIIO} {DISCOVERY} --port 30000 --host 0.0.0.0 {} --log-level info",
        policies("consistent_hash")
    );
    let effective = check(&line, "0.0.0.0:30000", "0.0.0.0:36367", &[]);
    assert_eq!([&*effective["prefill-policy"], &*effective["decode-policy"]], ["consistent_hash"; 2]);
}

#[test]
fn the_routers_own_test() {
    let line = format!(
        "vllm-router --port 8300 {} {MORIIO} {DISCOVERY} --worker-startup-check-interval 1",
        policies("consistent_hash")
    );
    let effective = check(&line, "127.0.0.1:8300", "0.0.0.0:36367", &[]);
    assert_eq!([&*effective["prefill-policy"], &*effective["decode-policy"]], ["consistent_hash"; 2]);
}

#[test]
fn the_line_of_vllms_documentation() {
    let line = format!("vllm-router {MORIIO} {DISCOVERY}");
    check(&line, "127.0.0.1:30000", "0.0.0.0:36367", &[]);
    check(&line.replace("vllm-router", "moriio-proxy"), "127.0.0.1:30000", "0.0.0.0:36367", &[]);
}

#[test]
fn what_the_image_runs_by_itself() {
    check("vllm-router --host 0.0.0.0 --port 8080", "0.0.0.0:8080", "0.0.0.0:36367", &[]);
}

/// Engines of another connector that are named and do not register.
#[test]
fn prime_rl_is_refused_clearly() {
    let line = "--vllm-pd-disaggregation --kv-connector nixl --prefill http://p:1 --decode http://d:1 --policy consistent_hash";
    let text = resolve(line, &[]).unwrap_err();
    let wanted = [
        "moriio-proxy: --kv-connector: \"nixl\" is not available, only moriio is",
        "moriio-proxy: --prefill: refused without --vllm-discovery-address: engines register here",
        "moriio-proxy: --decode: refused without --vllm-discovery-address: engines register here",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
}
