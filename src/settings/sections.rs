//! How each section is read from its options, and what options must say together.

use std::time::Duration;

use tracing::Level;

use super::hosts::{Endpoint, Host};
use super::reader::Reader;
use super::{
    Breaker, DecodeTokenBudget, Discovery, Exchange, HttpLimits, Listen, Log, LogFormat, Policies, PolicyName, Process,
    Timeouts, WriteDispatch,
};
use crate::settings::options::Key;

/// Engines forget a transfer nobody fetched after this time, so a hand-over must end before it.
const ENGINE_REAP: Duration = Duration::from_secs(60);

/// More threads than this have never served streams faster; engines on the same node need the processors.
const DEFAULT_WORKERS_MAX: usize = 8;

impl Listen {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let host = reader.host(Key::Host).unwrap_or(Host::ANY);
        let http = Endpoint { host, port: reader.number(Key::Port, 0..=65535), named: reader.named(Key::Host) };
        let ping_host = reader.host(Key::PingHost);
        let ping_port = reader.number(Key::PingPort, 0..=65535);
        let both = reader.address(Key::VllmDiscoveryAddress);
        if let Some((host, port)) = &both {
            let keys = [Key::VllmDiscoveryAddress, Key::PingHost];
            reader.require(ping_host.as_ref().is_none_or(|ping| ping == host), &keys, "name different addresses");
            let same = !reader.is_given(Key::PingPort) || ping_port == *port;
            reader.require(same, &[Key::VllmDiscoveryAddress, Key::PingPort], "name different ports");
        }
        let by_both = both.is_some();
        let (host, port, key) = match (both, ping_host) {
            (Some((host, port)), _) => (host, port, Key::VllmDiscoveryAddress),
            (None, Some(host)) => (host, ping_port, Key::PingHost),
            (None, None) => (http.host.clone(), ping_port, Key::Host),
        };
        let discovery = Endpoint { host, port, named: reader.named(key) };
        reader.show(Key::PingHost, discovery.host.to_string());
        reader.show(Key::PingPort, discovery.port.to_string());
        let overlap = http.host == discovery.host || http.host.is_unspecified() || discovery.host.is_unspecified();
        let apart = !overlap || http.port != discovery.port || http.port == 0;
        let ping = if by_both { Key::VllmDiscoveryAddress } else { Key::PingPort };
        reader.require(apart, &[Key::Port, ping], "must be different ports");
        Self { http, discovery }
    }
}

impl HttpLimits {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            header_timeout: reader.time(Key::HeaderTimeout),
            body_timeout: reader.time(Key::BodyTimeout),
            keep_alive_timeout: reader.time(Key::KeepAliveTimeout),
            max_body_bytes: reader.size(Key::MaxBodyBytes),
            max_connections: reader.number(Key::MaxConnections, 1..=1_000_000),
            max_in_flight: reader.number(Key::MaxInFlight, 1..=1_000_000),
            health_waits_for_pair: reader.switch(Key::HealthWaitsForPair),
        }
    }
}

impl Discovery {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let engine_ttl = reader.time(Key::EngineTtl);
        reader.require(engine_ttl >= Duration::from_secs(1), &[Key::EngineTtl], "must be at least 1s");
        let engine_in_flight = reader.number(Key::EngineInFlight, 0..=1_000_000);
        Self {
            engine_ttl,
            engine_allow: reader.networks(Key::EngineAllow),
            max_engines: reader.number(Key::MaxEngines, 2..=65_536),
            engine_in_flight: (engine_in_flight > 0).then_some(engine_in_flight),
        }
    }
}

impl Exchange {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let budgets = [("minus-one", DecodeTokenBudget::MinusOne), ("exact", DecodeTokenBudget::Exact)];
        let dispatches = [("concurrent", WriteDispatch::Concurrent), ("serial", WriteDispatch::Serial)];
        let whens = [("auto", true), ("off", false)];
        Self {
            decode_token_budget: reader.choice(Key::DecodeTokenBudget, &budgets),
            write_dispatch: reader.choice(Key::WriteDispatch, &dispatches),
            kv_release: reader.choice(Key::KvRelease, &whens),
            first_contact: reader.choice(Key::FirstContact, &whens),
            allow_stale_pairs: reader.switch(Key::AllowStalePairs),
        }
    }
}

impl Timeouts {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let times = Self {
            connect: reader.time(Key::ConnectTimeout),
            prefill: reader.time(Key::PrefillTimeout),
            first_byte: reader.time(Key::FirstByteTimeout),
            stream_idle: reader.time(Key::StreamIdleTimeout),
            answer: reader.time(Key::AnswerTimeout),
            hand_over: reader.time(Key::HandOverLimit),
            unpark: reader.time(Key::UnparkTimeout),
        };
        let wholes = [
            (Key::PrefillTimeout, times.prefill),
            (Key::FirstByteTimeout, times.first_byte),
            (Key::AnswerTimeout, times.answer),
        ];
        for (key, whole) in wholes {
            let keys = [key, Key::ConnectTimeout];
            reader.require(whole > times.connect, &keys, "the first must be longer, it includes the second");
        }
        let reap = "must be under 60s, when engines drop the blocks";
        reader.require(times.hand_over < ENGINE_REAP, &[Key::HandOverLimit], reap);
        times
    }
}

impl Breaker {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let failures = reader.number(Key::BreakerFailures, 0..=100_000);
        let (open, open_max) = (reader.time(Key::BreakerOpen), reader.time(Key::BreakerOpenMax));
        let keys = [Key::BreakerOpen, Key::BreakerOpenMax];
        reader.require(open <= open_max, &keys, "the first must not be longer than the second");
        Self { failures: (failures > 0).then_some(failures), open, open_max }
    }
}

impl Policies {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        /// The policies of vllm-router: those we lack are accepted, so that its command lines start.
        const KNOWN: [(&str, Option<PolicyName>); 5] = [
            ("round_robin", Some(PolicyName::RoundRobin)),
            ("random", None),
            ("power_of_two", None),
            ("consistent_hash", None),
            ("cache_aware", None),
        ];
        let mut lacking = Vec::new();
        for key in [Key::Policy, Key::PrefillPolicy, Key::DecodePolicy] {
            if reader.optional_choice(key, &KNOWN) == Some(None) {
                lacking.push(reader.named(key));
            }
            reader.show(key, String::from("round_robin"));
        }
        if !lacking.is_empty() {
            reader.warn(format!("{}: not available, round_robin is used", lacking.join(", ")));
        }
        Self::default()
    }
}

impl Log {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let levels = [
            ("trace", Level::TRACE),
            ("debug", Level::DEBUG),
            ("info", Level::INFO),
            ("warn", Level::WARN),
            ("error", Level::ERROR),
            ("warning", Level::WARN),
        ];
        let level = reader.optional_choice(Key::LogLevel, &levels).unwrap_or(Level::INFO);
        reader.show(Key::LogLevel, level.to_string().to_lowercase());
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        Self { level, format: reader.choice(Key::LogFormat, &formats) }
    }
}

impl Process {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = match reader.number(Key::Workers, 1..=512) {
            0 => processors.min(DEFAULT_WORKERS_MAX),
            given => given,
        };
        reader.show(Key::Workers, workers.to_string());
        Self { workers, drain_timeout: reader.time_or_zero(Key::DrainTimeout) }
    }
}
