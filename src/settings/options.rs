//! What the user typed: one table of every option, from which the command line, `--help` and the reference's table are made.
//!
//! Values stay text here; [`crate::settings`] gives them types, so that all mistakes are reported together.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

/// What stands in place of a secret wherever values are printed.
pub(crate) const MASKED: &str = "***";

/// How an option takes its value on the command line; the text is the value's name in `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One value.
    Value(&'static str),
    /// Values separated by commas; the flag may be repeated.
    List(&'static str),
    /// A flag that needs no value (`--flag`, `--flag=false`).
    Switch,
    /// One value that is never printed.
    Secret(&'static str),
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The option's name in code.
    pub key: Key,
    /// Heading it stands under in `--help`.
    pub heading: &'static str,
    /// Flag without its dashes; empty when there is only a variable.
    pub flag: &'static str,
    /// Environment variable.
    pub variable: &'static str,
    /// How it takes its value.
    pub kind: Form,
    /// Default as a user would type it; empty when the option is unset by default.
    pub default: &'static str,
    /// What it means, for `--help` and the reference.
    pub meaning: &'static str,
}

/// Makes [`Key`] and [`TABLE`] from one list, so that neither can miss a line of the other.
macro_rules! table {
    ($($heading:literal { $(
        $key:ident $flag:literal $variable:literal $kind:ident $(($name:literal))? = $default:literal: $meaning:literal;
    )* })*) => {
        /// Every option by name, in the order of [`TABLE`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Key { $($(#[doc = $meaning] $key,)*)* }

        /// Every option with its variable, default and meaning, in the order users read them.
        pub(crate) const TABLE: &[Row] = &[$($(Row {
            key: Key::$key,
            heading: $heading,
            flag: $flag,
            variable: $variable,
            kind: Form::$kind $(($name))?,
            default: $default,
            meaning: $meaning,
        },)*)*];
    };
}

table! {
    "Listening" {
        Host "host" "PROXY_HOST" Value("ADDRESS") = "0.0.0.0":
            "IP address or host name on which clients are served";
        Port "port" "PROXY_HTTP_PORT" Value("PORT") = "30000":
            "Port on which clients are served; 0 takes a free one and prints it";
        PingHost "ping-host" "PROXY_PING_HOST" Value("ADDRESS") = "":
            "IP address or host name on which engines register; that of --host when unset";
        PingPort "ping-port" "PROXY_PING_PORT" Value("PORT") = "36367":
            "Port on which engines register; 0 takes a free one and prints it";
        MetricsHost "metrics-host" "PROXY_METRICS_HOST" Value("ADDRESS") = "":
            "IP address or host name of --metrics-port; that of --host when unset";
        MetricsPort "metrics-port" "PROXY_METRICS_PORT" Value("PORT") = "":
            "Port on which /metrics is served besides; none when unset, 0 takes a free one and prints it";
    }
    "Engines" {
        EngineTtl "engine-ttl" "PROXY_ENGINE_TTL" Value("TIME") = "15s":
            "Silence after which an engine is asked whether it still lives; at least 1s";
        EngineAllow "engine-allow" "PROXY_ENGINE_ALLOW" List("NETWORKS") = "":
            "Networks engines may advertise addresses in, such as 10.0.0.0/8,192.168.1.7; any when unset";
        EngineHosts "engine-hosts" "PROXY_ENGINE_HOSTS" List("ADDR=HOSTS@RANKS") = "":
            "Hosts of engines over several, as `10.0.0.1:8000=10.0.0.1,10.0.0.2@8` (ranks of each behind the @), or `@FILE` with one a line";
        RouteRanks "route-ranks" "PROXY_ROUTE_RANKS" Value("COUNT") = "0":
            "Ranks of a prefill engine that have their turns: those below this number; 0 is all";
        MaxEngines "max-engines" "PROXY_MAX_ENGINES" Value("COUNT") = "4096":
            "Engines known at once; registrations beyond are refused";
        EngineInFlight "engine-in-flight" "PROXY_ENGINE_IN_FLIGHT" Value("COUNT") = "0":
            "Requests one engine may have in flight; 0 sets no limit";
        PrefillInFlight "prefill-in-flight" "PROXY_PREFILL_IN_FLIGHT" Value("COUNT") = "":
            "The same for prefill engines; as --engine-in-flight says when unset";
        DecodeInFlight "decode-in-flight" "PROXY_DECODE_IN_FLIGHT" Value("COUNT") = "":
            "The same for decode engines; as --engine-in-flight says when unset";
        Policy "policy" "PROXY_POLICY" Value("NAME") = "round_robin":
            "How engines are chosen: `round_robin`, `random`, `power_of_two`, `least_loaded`, `consistent_hash` or `cache_aware`";
        PrefillPolicy "prefill-policy" "PROXY_PREFILL_POLICY" Value("NAME") = "":
            "How prefill engines are chosen; as --policy says when unset";
        DecodePolicy "decode-policy" "PROXY_DECODE_POLICY" Value("NAME") = "":
            "How decode engines are chosen; as --policy says when unset";
        SessionAffinity "session-affinity" "PROXY_SESSION_AFFINITY" Value("WHEN") = "on":
            "Whether a session stays on the prefill engine and rank that served it, and on its decode engine where that reuses prefixes";
        SessionKeys "session-keys" "PROXY_SESSION_KEYS" List("PLACES") = "x-session-id,x-correlation-id,x-dynamo-session-id,x-smg-routing-key,body.session_id":
            "What names a session: headers, and texts of the body as `body.NAME`, the first present; or `none`";
        HashKeys "hash-keys" "PROXY_HASH_KEYS" List("PLACES") = "x-user-id,authorization":
            "What `consistent_hash` hashes where there is no session, before the client's address; or `none`";
        CacheThreshold "cache-threshold" "PROXY_CACHE_THRESHOLD" Value("PART") = "0.3":
            "`cache_aware`: the part of a prompt that an engine must have computed before, 0 to 1; else the one with the least to do is taken";
        PrefixMemory "prefix-memory" "PROXY_PREFIX_MEMORY" Value("BYTES") = "64MiB":
            "`cache_aware` and --decode-alone-missing: memory for what engines have computed, some 70 bytes for each 2 KB of prompts";
        DecodeAloneBelow "decode-alone-below" "PROXY_DECODE_ALONE_BELOW" Value("BYTES") = "0":
            "Requests of fewer bytes go to decode alone, which computes their prompts itself, where its release serves such (0.33.0); 0 is never";
        DecodeAloneMissing "decode-alone-missing" "PROXY_DECODE_ALONE_MISSING" Value("BYTES") = "0":
            "So do requests of which a decode engine has all but fewer bytes in its prefix cache, as far as is known; 0 is never";
        BalanceAbsThreshold "balance-abs-threshold" "PROXY_BALANCE_ABS_THRESHOLD" Value("COUNT") = "64":
            "A session moves once its engine has so many requests in flight more than the others on average, and --balance-rel-threshold times as many";
        BalanceRelThreshold "balance-rel-threshold" "PROXY_BALANCE_REL_THRESHOLD" Value("TIMES") = "1.5":
            "The other condition for that; at least 1";
    }
    "Exchange between engines" {
        DecodeTokenBudget "decode-token-budget" "PROXY_DECODE_TOKEN_BUDGET" Value("HOW") = "minus-one":
            "Token limit decode gets: `minus-one` (the client's less one, never below one) or `exact` (the client's)";
        ReportCachedTokens "report-cached-tokens" "PROXY_REPORT_CACHED_TOKENS" Switch = "false":
            "Answers' usage tells the prompt tokens that prefill had cached; decode counts what it loads from prefill as cached";
        WriteDispatch "write-dispatch" "PROXY_WRITE_DISPATCH" Value("HOW") = "concurrent":
            "When decode is sent in WRITE mode: `concurrent` with prefill, or `serial` after prefill's answer";
        WriteContract "write-contract" "PROXY_WRITE_CONTRACT" Value("HOW") = "auto":
            "WRITE with engines over several hosts: `leader` (any decode rank), `same-rank` (prefill's), or `auto`: `leader` where all hosts are listed";
        KvRelease "kv-release" "PROXY_KV_RELEASE" Value("WHEN") = "auto":
            "Tell prefill engines to free blocks nobody will read: `auto` where they understand it, or `off`";
        FirstContact "first-contact" "PROXY_FIRST_CONTACT" Value("WHEN") = "auto":
            "Send a pair's first exchange alone: `auto` where the engines need it, or `off`";
        AllowStalePairs "allow-stale-pairs" "PROXY_ALLOW_STALE_PAIRS" Switch = "false":
            "Use pairs of which one engine has met an earlier incarnation of the other";
    }
    "Time limits" {
        ConnectTimeout "connect-timeout" "PROXY_CONNECT_TIMEOUT" Value("TIME") = "5s":
            "Connecting to an engine";
        PrefillTimeout "prefill-timeout" "PROXY_PREFILL_TIMEOUT" Value("TIME") = "600s":
            "Prefill's answer, from dispatch; longer than --connect-timeout";
        FirstByteTimeout "first-byte-timeout" "PROXY_FIRST_BYTE_TIMEOUT" Value("TIME") = "300s":
            "Decode's first output of a streamed answer, once prefill is done; comments are none";
        StreamIdleTimeout "stream-idle-timeout" "PROXY_STREAM_IDLE_TIMEOUT" Value("TIME") = "300s":
            "Silence between bytes of decode's stream";
        AnswerTimeout "answer-timeout" "PROXY_ANSWER_TIMEOUT" Value("TIME") = "1800s":
            "An answer that is not streamed, as a whole";
        ColdTimeout "cold-timeout" "PROXY_COLD_TIMEOUT" Value("TIME") = "1800s":
            "Prefill's answer and the first output, where longer, until a pair has once answered: it may build kernels; 0 is off";
        HandOverLimit "hand-over-limit" "PROXY_HAND_OVER_LIMIT" Value("TIME") = "20s":
            "READ mode: from prefill's answer to decode's dispatch; under 60s, when engines drop the blocks";
        UnparkTimeout "unpark-timeout" "PROXY_UNPARK_TIMEOUT" Value("TIME") = "30s":
            "WRITE mode: waiting for the first byte of a decode leg whose prefill failed";
        DrainTimeout "drain-timeout" "PROXY_DRAIN_TIMEOUT" Value("TIME") = "25s":
            "What running answers get to end after a stop signal; 0 cuts them at once";
        HeaderTimeout "header-timeout" "PROXY_HEADER_TIMEOUT" Value("TIME") = "30s":
            "What a client gets to send the head of a connection's first request; later ones have --keep-alive-timeout";
        BodyTimeout "body-timeout" "PROXY_BODY_TIMEOUT" Value("TIME") = "120s":
            "What a client gets to send the body of a request";
        KeepAliveTimeout "keep-alive-timeout" "PROXY_KEEP_ALIVE_TIMEOUT" Value("TIME") = "65s":
            "How long a client's idle connection is kept";
    }
    "Sizes" {
        MaxBodyBytes "max-body-bytes" "PROXY_MAX_BODY_BYTES" Value("SIZE") = "256MiB":
            "Largest request body, inclusive; bytes, or with KB, MB, GB, KiB, MiB, GiB";
        MaxConnections "max-connections" "PROXY_MAX_CONNECTIONS" Value("COUNT") = "16384":
            "Client connections open at once";
        MaxInFlight "max-in-flight" "PROXY_MAX_IN_FLIGHT" Value("COUNT") = "8192":
            "Generation requests in flight at once; more wait as --queue-size allows";
        MaxSiblings "max-siblings" "PROXY_MAX_SIBLINGS" Value("COUNT") = "16":
            "Answers that one request may ask for, by `n` or a list of prompts: each has a pair of its own; 1 refuses several";
        QueueSize "queue-size" "PROXY_QUEUE_SIZE" Value("COUNT") = "":
            "Requests that wait for a place in flight or for engines with room, by priority and fair between sessions; more are answered with 429; when unset 100 where --max-in-flight or a cap on engines is set, else 0";
        QueueTimeout "queue-timeout" "PROXY_QUEUE_TIMEOUT" Value("TIME") = "60s":
            "How long a request waits for a place in flight, room on engines or a pair's first contact; after it 429, or 503";
    }
    "Retries and breakers" {
        Retries "retries" "PROXY_RETRIES" Value("COUNT") = "2":
            "Further attempts after a failure that cost no engine any work; 0 is off";
        RetryBudget "retry-budget" "PROXY_RETRY_BUDGET" Value("PERCENT") = "10":
            "Share of the traffic that may be retries, in percent";
        BreakerFailures "breaker-failures" "PROXY_BREAKER_FAILURES" Value("COUNT") = "5":
            "Failures in a row after which an engine is left alone; 0 is off";
        BreakerOpen "breaker-open" "PROXY_BREAKER_OPEN" Value("TIME") = "5s":
            "How long it is left alone the first time";
        BreakerOpenMax "breaker-open-max" "PROXY_BREAKER_OPEN_MAX" Value("TIME") = "30s":
            "How long it is left alone at most; not under --breaker-open";
    }
    "Clients" {
        ApiKey "api-key" "PROXY_API_KEY" Secret("KEY") = "":
            "Key every client must present; none asked when unset (prefer the variable: flags show in process lists)";
        OpenaiApiKey "" "OPENAI_API_KEY" Secret("KEY") = "":
            "Key engines are given when --api-key is set, or a client sent no credential";
        CorsAllowOrigin "cors-allow-origin" "PROXY_CORS_ALLOW_ORIGIN" List("ORIGINS") = "":
            "Origins whose pages may call from a browser, such as `https://chat.example`, or `*`; none when unset";
        RequestIdHeaders "request-id-headers" "PROXY_REQUEST_ID_HEADERS" List("NAMES") = "x-request-id":
            "Headers that a client's own request id is looked for in, in this order; it is echoed in x-request-id";
        HealthWaitsForPair "health-waits-for-pair" "PROXY_HEALTH_WAITS_FOR_PAIR" Switch = "false":
            "Answer /health with 503 until a prefill and a decode engine have once been ready together";
    }
    "Readiness" {
        ExpectPrefill "expect-prefill" "PROXY_EXPECT_PREFILL" Value("COUNT") = "0":
            "Prefill engines that must be usable before /ready says yes; at least one always must";
        ExpectDecode "expect-decode" "PROXY_EXPECT_DECODE" Value("COUNT") = "0":
            "Decode engines that must be usable before it does";
        RanksPerHost "ranks-per-host" "PROXY_RANKS_PER_HOST" Value("COUNT") = "0":
            "Ranks on one host: an engine of more counts there once for each host that it fills; 0 counts it once";
    }
    "Process" {
        LogLevel "log-level" "PROXY_LOG_LEVEL" Value("LEVEL") = "info":
            "What is logged: `trace`, `debug`, `info`, `warn` or `error`";
        LogFormat "log-format" "PROXY_LOG_FORMAT" Value("FORMAT") = "text":
            "How it is logged: `text` or `json`";
        Workers "workers" "PROXY_WORKERS" Value("COUNT") = "1":
            "Threads that serve clients; the first is filled before the next is used";
    }
    "Accepted from vllm-router command lines" {
        VllmPdDisaggregation "vllm-pd-disaggregation" "PROXY_VLLM_PD_DISAGGREGATION" Switch = "false":
            "As a flag, serves with the options and defaults of vllm-router; as a variable, no effect";
        KvConnector "kv-connector" "PROXY_KV_CONNECTOR" Value("NAME") = "moriio":
            "The engines' KV connector; only `moriio` is known";
        VllmDiscoveryAddress "vllm-discovery-address" "PROXY_VLLM_DISCOVERY_ADDRESS" Value("HOST:PORT") = "":
            "Sets --ping-host and --ping-port together";
    }
}

impl Key {
    /// This option's line in [`TABLE`].
    #[must_use]
    pub fn row(self) -> &'static Row {
        // Both come from one list, so every key has a line.
        &TABLE[self as usize]
    }
}

impl Row {
    /// The name a user knows it by: the flag with its dashes, or the variable where there is no flag.
    #[must_use]
    pub fn name(&self) -> String {
        if self.flag.is_empty() { self.variable.to_owned() } else { format!("--{}", self.flag) }
    }

    /// Whether its value must never be printed.
    #[must_use]
    pub(crate) fn is_secret(&self) -> bool {
        matches!(self.kind, Form::Secret(_))
    }

    /// The option as clap takes it.
    pub(super) fn argument(&self) -> Arg {
        let mut help = self.meaning.replace('`', "");
        if !self.default.is_empty() && self.kind != Form::Switch {
            // Writing to a String cannot fail.
            let _ = write!(help, " [default: {}]", self.default);
        }
        let _ = write!(help, " [env: {}]", self.variable);
        let argument = Arg::new(self.flag).long(self.flag).help(help).help_heading(self.heading);
        match self.kind {
            Form::Value(name) | Form::Secret(name) => argument.value_name(name).allow_negative_numbers(true),
            Form::List(name) => argument.value_name(name).action(ArgAction::Append),
            Form::Switch => {
                let argument = argument.value_name("BOOL").num_args(0..=1).require_equals(true);
                argument.default_missing_value("true").hide_possible_values(true)
            }
        }
    }
}

/// The options of `serve` as typed on the command line, none of them read yet.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ServeOptions {
    typed: BTreeMap<Key, String>,
}

impl ServeOptions {
    /// What was typed for an option; repeated lists are joined by commas.
    #[must_use]
    pub fn typed(&self, key: Key) -> Option<&str> {
        self.typed.get(&key).map(String::as_str)
    }

    /// The same options with one more typed.
    #[must_use]
    pub fn with(mut self, key: Key, value: impl Into<String>) -> Self {
        self.typed.insert(key, value.into());
        self
    }
}

impl fmt::Debug for ServeOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |key: &Key, text| if key.row().is_secret() { MASKED } else { text };
        formatter.debug_map().entries(self.typed.iter().map(|(key, text)| (key, shown(key, text)))).finish()
    }
}

// By hand and not derived: a derived struct would be a second list of the options beside the table.
impl Args for ServeOptions {
    fn augment_args(command: Command) -> Command {
        command.args(TABLE.iter().filter(|row| !row.flag.is_empty()).map(Row::argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServeOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = Self::default();
        options.update_from_arg_matches(matches)?;
        Ok(options)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.take(matches, TABLE.iter().filter(|row| !row.flag.is_empty()));
        Ok(())
    }
}

impl ServeOptions {
    /// Takes what was typed for these options.
    pub(super) fn take(&mut self, matches: &ArgMatches, rows: impl Iterator<Item = &'static Row>) {
        for row in rows {
            if let Ok(Some(values)) = matches.try_get_many::<String>(row.flag) {
                let values: Vec<&str> = values.map(String::as_str).collect();
                self.typed.insert(row.key, values.join(","));
            }
        }
    }
}

/// The table of options as the reference shows it, in Markdown.
#[must_use]
pub fn reference_table() -> String {
    let mut text = String::from("| Flag | Variable | Default | Meaning |\n|---|---|---|---|\n");
    let code = |value: String| {
        if value.is_empty() { String::from("none") } else { format!("`{value}`") }
    };
    for row in TABLE {
        let flag = if row.flag.is_empty() { String::new() } else { row.name() };
        let default = code(row.default.to_owned());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {} | `{}` | {default} | {} |", code(flag), row.variable, row.meaning);
    }
    text
}

#[cfg(test)]
mod tests;
