//! Random bodies of every API with the fields that decide a prompt or end an engine: both legs render the same prompt, and
//! nothing forbidden reaches decode. Judged by a reader of its own, which knows what is *not* rendered and compares the rest.

use bytes::Bytes;
use moriio_proxy::api::Api;
use moriio_proxy::api::legs::{Ids, Pair, PrefillParams, alone_leg, decode_leg_read, decode_leg_write, prefill_leg};
use moriio_proxy::api::request::Request;
use moriio_proxy::engine::versions::{EngineVersion, Traits, traits};
use moriio_proxy::engine::{Dialect, Mode};
use moriio_proxy::settings::TokenBudget;
use serde_json::{Map, Value, json};

use super::fuzz;
use super::mutate::Random;
use super::readers::registration;

/// Values that engines take for numbers or booleans, and some that they do not.
const ODD: &str = "null 0 1 -1 2 1.0 -1.0 1e0 true false \"1\" \"-1\" \"true\" \"no\" [] {} \"auto\" \"disabled\"";

/// Whatever a field may be given besides.
fn of_its_own(name: &str) -> &'static [&'static str] {
    match name {
        "tool_choice" => &[
            r#""auto""#,
            r#""required""#,
            r#"{"type":"tool","name":"f"}"#,
            r#"{"type":"any"}"#,
            r#"{"type":"function","function":{"name":"f"}}"#,
        ],
        "tools" => &[r#"[{"type":"function","name":"f"}]"#, r#"[{"type":"mcp"}]"#, r#"[{"type":"code_interpreter"}]"#],
        "vllm_xargs" | "extra_args" => &[
            r#"{"kv_transfer_params":"{}"}"#,
            r#"{"a":1,"kv_\u0074ransfer_params":{"remote_host":"evil"},"b":2}"#,
            r#"{"a":[1]}"#,
        ],
        "kv_transfer_params" => &[r#"{"remote_host":"evil"}"#, r#""evil""#],
        "response_format" => &[r#"{"type":"json_object"}"#],
        "stop_token_ids" => &["[1,2]"],
        "stream_options" => &[r#"{"include_usage":true}"#],
        _ => &[],
    }
}

const COMMON: &str = "stream stream_options n best_of use_beam_search kv_transfer_params vllm_xargs extra_args request_id \
    cache_salt priority seed chat_template_kwargs";

fn fields(api: Api) -> &'static str {
    match api {
        Api::Completions => {
            "max_tokens min_tokens echo logprobs prompt_logprobs truncate_prompt_tokens add_special_tokens suffix \
             return_token_ids structured_outputs max_completion_tokens"
        }
        Api::Chat => {
            "max_tokens max_completion_tokens min_tokens echo logprobs top_logprobs prompt_logprobs tools tool_choice \
             truncate_prompt_tokens add_special_tokens add_generation_prompt response_format return_token_ids"
        }
        Api::Responses => {
            "max_output_tokens min_tokens store background previous_response_id conversation truncation tools tool_choice \
             ignore_eos stop_token_ids instructions reasoning prompt_logprobs"
        }
        Api::Messages => "max_tokens system tools tool_choice thinking output_config ignore_eos",
        Api::Generate => "features",
    }
}

const SAMPLING: &str =
    "max_tokens min_tokens n best_of use_beam_search prompt_logprobs logprobs extra_args kv_transfer_params seed";

fn value(random: &mut Random, name: &str) -> String {
    let own = of_its_own(name);
    let odd: Vec<&str> = ODD.split(' ').collect();
    match own.is_empty() || random.one_in(4) {
        true if name.contains("tokens") && random.one_in(2) => (1 + random.below(30)).to_string(),
        true => random.of(&odd).to_owned(),
        false => random.of(own).to_owned(),
    }
}

/// Now and then an escape in a key, which engines see through.
fn key(random: &mut Random, name: &str) -> String {
    match random.one_in(12) {
        true => format!("\"\\u{:04x}{}\"", u32::from(name.as_bytes()[0]), &name[1..]),
        false => format!("\"{name}\""),
    }
}

fn members(random: &mut Random, names: &str, most: usize) -> Vec<String> {
    let names: Vec<&str> = names.split_whitespace().collect();
    (0..random.below(most))
        .map(|_| {
            let name = random.of(&names);
            let (key, value) = (key(random, name), value(random, name));
            format!("{key}:{value}")
        })
        .collect()
}

/// A random body; a field may stand in it twice.
pub fn body(random: &mut Random) -> (Api, String) {
    let api = Api::ALL[random.below(Api::ALL.len())];
    let names = format!("{COMMON} {}", fields(api));
    let mut all = members(random, &names, 7);
    all.push(match api {
        Api::Completions => r#""prompt":"some words""#.to_owned(),
        Api::Chat | Api::Messages => r#""messages":[{"role":"user","content":"some words"}]"#.to_owned(),
        Api::Responses => r#""input":"some words""#.to_owned(),
        Api::Generate => r#""token_ids":[1,2,3]"#.to_owned(),
    });
    for _ in 0..if api == Api::Generate { 1 + random.below(2) } else { 0 } {
        let inner = members(random, SAMPLING, 5).join(",");
        all.push(format!("{}:{{{inner}}}", key(random, "sampling_params")));
    }
    (api, format!("{{{}}}", all.join(",")))
}

/// Fields that no renderer sees.
const UNSEEN: [&str; 18] = [
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "min_tokens",
    "request_id",
    "kv_transfer_params",
    "logprobs",
    "top_logprobs",
    "echo",
    "return_token_ids",
    "structured_outputs",
    "ignore_eos",
    "stop_token_ids",
    "store",
    "sampling_params",
    "seed",
];

/// What an engine makes the prompt of.
fn rendered(api: Api, leg: &Value, minor: u16) -> Map<String, Value> {
    let mut seen = leg.as_object().unwrap().clone();
    let limit = ["max_output_tokens", "max_completion_tokens", "max_tokens"]
        .into_iter()
        .filter(|key| api != Api::Completions || *key == "max_tokens")
        .find_map(|key| seen.get(key).filter(|limit| !limit.is_null()).cloned());
    let limit = limit.or((api == Api::Completions).then(|| json!(16)));
    for key in UNSEEN {
        seen.shift_remove(key);
    }
    let is_number = |value: &Value| value.as_f64() == Some(-1.0) || value == "-1";
    let cut = matches!(api, Api::Completions | Api::Chat) && seen.get("truncate_prompt_tokens").is_some_and(is_number);
    if cut || (api == Api::Responses && seen.get("truncation").is_some_and(|value| value == "auto")) {
        let kept = match (minor, limit) {
            (..=31, limit) => json!(["context less", limit]),
            (32, None) => json!("context"),
            _ => json!("context less 1"),
        };
        seen.insert("cut".into(), kept);
    }
    if let (Api::Messages, Some(choice)) = (api, seen.get_mut("tool_choice"))
        && (choice["type"] == "tool" || choice["type"] == "any")
    {
        *choice = json!("required");
    }
    seen
}

/// What an engine may take for true.
fn is_true(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(flag)) => *flag,
        Some(Value::Number(number)) => number.as_f64() == Some(1.0),
        Some(Value::String(text)) => ["1", "true", "yes", "on", "t", "y"].contains(&text.as_str()),
        _ => false,
    }
}

fn is_some(value: Option<&Value>) -> bool {
    value.is_some_and(|value| !value.is_null())
}

/// Why an engine must not get this leg.
fn forbidden(api: Api, leg: &Value, decode: bool) -> Option<&'static str> {
    let sampling = leg.get("sampling_params").filter(|_| api == Api::Generate);
    let place = sampling.unwrap_or(leg);
    let echo = is_true(leg.get("echo"));
    let side = match api {
        Api::Completions => is_some(leg.get("prompt_logprobs")) || (echo && is_some(leg.get("logprobs"))),
        Api::Chat => is_some(leg.get("prompt_logprobs")) || echo,
        Api::Generate => is_some(place.get("prompt_logprobs")),
        Api::Responses | Api::Messages => false,
    };
    if side && decode {
        return Some("output of the prompt's side");
    }
    if is_true(place.get("use_beam_search")) || is_true(leg.get("use_beam_search")) {
        return Some("beams");
    }
    if ["n", "best_of"].iter().any(|key| is_some(place.get(*key)) && place[*key].as_f64() != Some(1.0)) {
        return Some("siblings");
    }
    let args =
        |place: &Value| ["vllm_xargs", "extra_args"].iter().any(|key| place[*key].get("kv_transfer_params").is_some());
    if args(leg) || args(&leg["sampling_params"]) || leg["sampling_params"].get("kv_transfer_params").is_some() {
        return Some("hidden params");
    }
    if api != Api::Responses {
        return None;
    }
    if is_true(leg.get("background"))
        || ["previous_response_id", "conversation"].iter().any(|key| is_some(leg.get(*key)))
    {
        return Some("state of one process");
    }
    let tools = leg["tools"].as_array().is_some_and(|tools| tools.iter().any(|tool| tool["type"] != "function"));
    let guarded = leg["ignore_eos"] == true && leg["stop_token_ids"] == json!([]) && leg["store"] == false;
    match (tools, guarded || decode) {
        (true, _) => Some("tools of the server"),
        (false, false) => Some("no guard against a stop token"),
        (false, true) => None,
    }
}

/// A release and its row.
pub fn row(minor: u16) -> &'static Traits {
    let dialect = if minor < 20 { Dialect::A } else { Dialect::B };
    traits(Some(EngineVersion::new(0, minor, 0)), dialect)
}

fn json_of(text: Vec<u8>) -> Value {
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&text)))
}

#[test]
fn both_legs_render_one_prompt_and_nothing_forbidden_reaches_them() {
    let (mut prefill, decode) = (registration(), registration());
    let answer = json!({"kv_transfer_params": {"remote_block_ids": [[1]], "remote_dp_rank": 0}}).to_string();
    let params = PrefillParams::from_answer(Bytes::from(answer)).unwrap();
    let mut ends = [0; 3];
    fuzz("fields", |random| {
        let (api, text) = body(random);
        let budget = if random.one_in(2) { TokenBudget::Exact } else { TokenBudget::MinusOne };
        let Ok(request) = Request::parse(api, Bytes::from(text.clone()), budget) else {
            return ends[0] += 1;
        };
        let releases = [0; 2].map(|_: usize| [19, 22, 23, 24, 28, 30, 31, 32, 33][random.below(9)]);
        let mode = if random.one_in(2) { Mode::Read } else { Mode::Write };
        prefill.dp_size = if random.one_in(3) { 4 } else { 1 };
        if request.fits(row(releases[0]), row(releases[1]), mode, prefill.dp_size).is_err() {
            return ends[1] += 1;
        }
        ends[2] += 1;
        let pair = Pair { prefill: &prefill, decode: &decode, rank: Some(0), decode_rank: None };
        let ids = Ids::fresh(&pair, random.one_in(2));
        if request.alone.is_some() {
            let leg = json_of(alone_leg(&request, &ids).to_vec());
            assert_eq!(forbidden(api, &leg, false), None, "{text}");
            assert_eq!(leg.get("kv_transfer_params"), None, "{text}");
            assert!(releases[0] >= 23, "{text}");
            return;
        }
        let first = json_of(prefill_leg(&request, &pair, &ids).to_vec());
        let second = match mode {
            Mode::Read => decode_leg_read(&request, &pair, &ids, &params),
            Mode::Write => decode_leg_write(&request, &pair, &ids),
        };
        let second = json_of(second.to_vec());
        assert_eq!(forbidden(api, &first, false), None, "{text}\n{first}");
        assert_eq!(forbidden(api, &second, true), None, "{text}\n{second}");
        let (one, other) = (rendered(api, &first, releases[0]), rendered(api, &second, releases[1]));
        assert_eq!(one, other, "{text} on {releases:?}");
        assert_eq!(first["request_id"], second["request_id"]);
        assert!(api != Api::Messages || first["tool_choice"]["type"] != "tool", "{first}");
        assert!(!first.to_string().contains("evil") && !second.to_string().contains("evil"), "{text}");
    });
    if std::env::var_os("MORIIO_FUZZ_SEED").is_none() {
        assert!(ends.iter().all(|end| *end > 5), "refused, too old, sent: {ends:?}");
    }
}
