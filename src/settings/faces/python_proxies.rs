//! The options and variables of the Python proxies: the toy of vLLM's examples with its descendants, and MAD's.

use super::row::{Change, Program, Row, Says, Takes, Verdict};
use crate::engine::Role;
use crate::settings::conduct::{Announces, Conduct};
use crate::settings::options::Key;
use crate::settings::presumed::Ranks;

use Change::{Always, Renamed, Same};
use Takes::{Nothing, OneOf, Text, Whole, Within};
use Verdict::{Honoured, Mapped, Refused, Registration, Silent};

/// The names of the toy's file: InferenceX's and AMD's, and that of vLLM's examples.
pub(super) const TOY_NAMES: [&str; 2] = ["moriio_proxy.py", "moriio_toy_proxy_server.py"];

/// The toy with all that it reads.
pub(super) const TOY: Program = Program {
    name: TOY_NAMES[0],
    about: "moriio-proxy as moriio_proxy.py or moriio_toy_proxy_server.py: the options and defaults of that program",
    rows: TOY_ROWS,
    habits: LINE,
    conduct: Conduct { announces: Announces::AsPythonProxies, notes_rank: true, profiles: true, ..Conduct::NATIVE },
};

/// MAD's proxy with all that it reads.
pub(super) const MAD: Program = Program {
    name: "moriio_pd_proxy.py",
    about: "moriio-proxy as moriio_pd_proxy.py, the proxy of MAD: the options and defaults of that program",
    rows: MAD_ROWS,
    habits: LINE,
    conduct: Conduct { announces: Announces::AsPythonProxies, names_side: true, notes_rank: true, ..Conduct::NATIVE },
};

/// There, what is over the limit waits, without any end; here it does for longer than clients do.
const LINE: &[(Key, &str)] = &[(Key::QueueSize, "4096"), (Key::QueueTimeout, "3600s")];

/// Native names of levels do too.
const LEVELS: &[&str] = &["debug", "info", "warning", "error", "critical", "warn", "trace"];

/// More than any host could serve, for those who set no limit.
const UNLIMITED: &str = "1000000";

/// Makes the rows of one list: flags or none, a variable or none.
macro_rules! rows {
    ($([$($flag:literal)?] $variable:literal: $takes:expr, $default:literal, $verdict:expr => $meaning:literal;)*) => {
        &[$(Row {
            flags: &[$($flag)?], variable: $variable, takes: $takes, default: $default, verdict: $verdict, meaning: $meaning
        },)*]
    };
}

const TOY_ROWS: &[Row] = rows! {
    ["port"] "": Whole, "10001", Honoured(Key::Port)
        => "where clients are served";
    [] "PROXY_LISTEN_BACKLOG": Whole, "4096", Silent
        => "connections queue up as far as the system allows (`net.core.somaxconn`)";
    [] "PROXY_TYPE": Text, "", Silent => "for launch scripts";
    [] "PROXY_IP": Text, "", Silent => "for launch scripts";
    [] "PROXY_PORT": Text, "", Silent => "for launch scripts, which give `--port` where it is another than the default";
    [] "PROXY_SCRIPT": Text, "", Silent => "for launch scripts";
    [] "PROXY_HANDSHAKE_PER_POD": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_STALL_INTERVAL_S": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_CONNECT_TIMEOUT_S": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_SOCK_READ_TIMEOUT_S": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_HTTP_LIMIT": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_HTTP_LIMIT_PER_HOST": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_NIAH_RANK": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_LOG_FILE": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_ZMQ_HEARTBEAT_LOG": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_ZMQ_HEARTBEAT_LOG_S": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_USE_DISCOVERY": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_MAX_CONCURRENCY": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_ROUTE_DP": Text, "", Silent => "MAD's proxy reads it";
    [] "PROXY_DEBUG": Text, "", Silent => "MAD's proxy reads it";
};

const MAD_ROWS: &[Row] = rows! {
    ["port"] "MORI_PROXY_PORT": Whole, "10001", Honoured(Key::Port)
        => "where clients are served";
    ["discovery-port"] "MORI_PROXY_PING_PORT": Whole, "36367", Honoured(Key::PingPort)
        => "where engines register";
    ["expect-prefill"] "": Within(0, 65_536), "0", Honoured(Key::ExpectPrefill)
        => "`/ready` is 503 until so many prefill engines can be used, by the hosts that they fill; it is in the log";
    ["expect-decode"] "": Within(0, 65_536), "0", Honoured(Key::ExpectDecode)
        => "likewise for decode engines";

    ["max-concurrency"] "PROXY_MAX_CONCURRENCY": Within(0, 1_000_000), "512", Mapped(&[
        (Key::MaxInFlight, Renamed("0", UNLIMITED))], None)
        => "`--max-in-flight`; requests beyond wait in order of arrival, 0 is no limit";
    ["dp-size-local"] "DP_PARALLEL_SIZE_LOCAL": Within(0, 1024), "8", Mapped(&[(Key::RanksPerHost, Same)], None)
        => "`--ranks-per-host`, for what is expected; an engine of as many ranks as the two below say, if these are more, is on several hosts, for which its first stands";
    ["log-level"] "PROXY_LOG_LEVEL": OneOf(LEVELS), "DEBUG", Mapped(&[(Key::LogLevel, Renamed("critical", "error"))], None)
        => "`--log-level`; `critical` is `error`";
    ["debug"] "PROXY_DEBUG": Nothing, "", Mapped(&[(Key::LogLevel, Always("debug"))], None)
        => "`--log-level debug`, whatever `--log-level` says; the variable is weaker than both flags";

    ["prefill"] "": Text, "", Registration(Says::Engine(Role::Prefill), &[])
        => "engines register; one at an address that is not named is noted";
    ["decode"] "": Text, "", Registration(Says::Engine(Role::Decode), &[])
        => "as `--prefill`";
    ["moriio-dp-size"] "PREFILL_DP_SIZE": Whole, "0", Registration(Says::Ranks(Ranks::InAll(Some(Role::Prefill))), &[])
        => "engines say how many ranks they have; another number is noted";
    ["decode-dp-size"] "DECODE_DP_SIZE": Whole, "0", Registration(Says::Ranks(Ranks::InAll(Some(Role::Decode))), &[])
        => "engines say how many ranks they have; another number is noted";
    ["route-dp-size"] "PROXY_ROUTE_DP": Within(0, 1024), "0", Mapped(&[(Key::RouteRanks, Same)], None)
        => "`--route-ranks`";

    ["use-discovery"] "PROXY_USE_DISCOVERY": Nothing, "", Silent => "engines can always register";
    [] "PROXY_LISTEN_BACKLOG": Whole, "4096", Silent
        => "connections queue up as far as the system allows (`net.core.somaxconn`)";
    [] "PROXY_TYPE": Text, "", Silent => "for launch scripts";
    [] "PROXY_IP": Text, "", Silent => "for launch scripts";
    [] "PROXY_PORT": Text, "", Silent => "for launch scripts, which give `--port`";
    [] "PROXY_SCRIPT": Text, "", Silent => "for launch scripts";
    [] "PROXY_HANDSHAKE_PER_POD": Text, "", Silent => "engines say where they are";
    [] "PROXY_STALL_INTERVAL_S": Text, "10", Silent => "";
    [] "PROXY_CONNECT_TIMEOUT_S": Text, "30", Silent => "`--connect-timeout` is the limit here";
    [] "PROXY_SOCK_READ_TIMEOUT_S": Text, "360000", Silent
        => "`--prefill-timeout` and those beside it are the limits here";
    [] "PROXY_HTTP_LIMIT": Text, "2048", Silent => "";
    [] "PROXY_HTTP_LIMIT_PER_HOST": Text, "1024", Silent => "";
    [] "PROXY_NIAH_RANK": Text, "0", Silent => "no client chooses ranks";
    [] "PROXY_LOG_FILE": Text, "", Silent => "the log goes to stderr";
    [] "PROXY_ZMQ_HEARTBEAT_LOG": Text, "", Silent => "";
    [] "PROXY_ZMQ_HEARTBEAT_LOG_S": Text, "60", Silent => "";

    ["no-use-discovery"] "": Nothing, "", Refused => "engines must be able to register, with MAD's proxy too";
};
