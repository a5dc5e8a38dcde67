//! The rows.

use crate::api::Api;
use crate::engine::Mode;
use crate::engine::versions::EngineVersion;

use super::hidden::PARAMS;
use super::row::{ApiNeed, Field, Gets, Place, Refuse};

const ALL: &[Api] = &Api::ALL;
const COMPLETIONS: &[Api] = &[Api::Completions];
const CHAT: &[Api] = &[Api::Chat];
const RESPONSES: &[Api] = &[Api::Responses];
const MESSAGES: &[Api] = &[Api::Messages];
const GENERATE: &[Api] = &[Api::Generate];
/// The APIs of OpenAI's older style.
const BOTH: &[Api] = &[Api::Completions, Api::Chat];

/// The reasons that several rows share.
const LIMITED: &str = "prefill's token is thrown away, and none of it is a stop token";
const GROWS: &str = "only prefill's answer would grow (protocol F2)";
const SIDE: &str = "decode has no logits of what it loads; on 0.31 and 0.32 it ends prefill's listener (protocol F5)";
const ONE_PROCESS: &str = "kept in one engine's process only (protocol F10)";
const SIBLINGS: &str = "siblings would share one transfer";
const SIBLING: &str = "each answer has a pair of its own (protocol F6)";
const BEAMS: &str = "is not supported: beams are requests without transfer params";
const TOO_FAR: &str = "is not supported: the two engines keep no answers in common";

const fn row(apis: &'static [Api], name: &'static str, prefill: Gets, decode: Gets, why: &'static str) -> Field {
    Field { apis, place: Place::Top, name, prefill, decode, refuse: Refuse::Nothing, why }
}

const fn refused(apis: &'static [Api], name: &'static str, refuse: Refuse, why: &'static str) -> Field {
    Field { refuse, ..row(apis, name, Gets::Sent, Gets::Sent, why) }
}

const fn sampling(field: Field) -> Field {
    Field { place: Place::Sampling, ..field }
}

const fn or(field: Field, refuse: Refuse) -> Field {
    Field { refuse, ..field }
}

/// A limit: one token for prefill.
const fn limit(apis: &'static [Api], name: &'static str, prefill: Gets, refuse: Refuse) -> Field {
    Field { refuse, ..row(apis, name, prefill, Gets::Less, LIMITED) }
}

/// Output of the prompt's side.
const fn side(apis: &'static [Api], name: &'static str, refuse: Refuse) -> Field {
    Field { refuse, ..row(apis, name, Gets::Never, Gets::Never, SIDE) }
}

const ONE: Gets = Gets::Always("1");

/// By field. Of fields with one name, at one place, each API has one row.
pub(super) const ROWS: &[Field] = &[
    or(
        row(ALL, "stream", Gets::Always("false"), Gets::Sent, "transfer params come in a JSON answer"),
        Refuse::NoBoolean,
    ),
    row(ALL, "stream_options", Gets::Nothing, Gets::Sent, "a 400 where nothing streams"),
    limit(COMPLETIONS, "max_tokens", ONE, Refuse::LimitBesideEcho),
    limit(&[Api::Chat, Api::Messages], "max_tokens", ONE, Refuse::Below(1)),
    limit(BOTH, "max_completion_tokens", Gets::Instead("1"), Refuse::Below(1)),
    limit(RESPONSES, "max_output_tokens", ONE, Refuse::Below(1)),
    limit(BOTH, "min_tokens", ONE, Refuse::Below(0)),
    sampling(limit(GENERATE, "max_tokens", ONE, Refuse::Below(1))),
    sampling(limit(GENERATE, "min_tokens", ONE, Refuse::Below(0))),
    row(RESPONSES, "ignore_eos", Gets::Always("true"), Gets::Sent, "it has no `min_tokens` (protocol F4)"),
    row(RESPONSES, "stop_token_ids", Gets::Always("[]"), Gets::Sent, "the same"),
    row(RESPONSES, "store", Gets::Always("false"), Gets::Sent, "nobody asks for prefill's answer (protocol F4)"),
    row(ALL, "request_id", Gets::Id, Gets::Id, "engines release a refused leg's blocks under it"),
    row(ALL, PARAMS, Gets::Params, Gets::Params, "a client's would name hosts to dial"),
    or(row(BOTH, "n", Gets::Sibling, Gets::Sibling, SIBLING), Refuse::TooMany),
    row(BOTH, "seed", Gets::Sibling, Gets::Sibling, "choices of one prompt count up from it, as an engine's do"),
    refused(&[Api::Responses, Api::Messages, Api::Generate], "n", Refuse::NotOne, SIBLINGS),
    refused(ALL, "best_of", Refuse::NotOne, SIBLINGS),
    refused(ALL, "use_beam_search", Refuse::True(BEAMS), "beams carry no transfer params (protocol F6)"),
    sampling(refused(GENERATE, "n", Refuse::NotOne, SIBLINGS)),
    sampling(refused(GENERATE, "best_of", Refuse::NotOne, SIBLINGS)),
    sampling(refused(GENERATE, "use_beam_search", Refuse::True(BEAMS), "beams carry no transfer params (protocol F6)")),
    or(row(COMPLETIONS, "prompt", Gets::Sibling, Gets::Sibling, SIBLING), Refuse::TooMany),
    refused(COMPLETIONS, "prompt_embeds", Refuse::BesidePrompt, SIBLINGS),
    side(BOTH, "prompt_logprobs", Refuse::PromptSide),
    sampling(side(GENERATE, "prompt_logprobs", Refuse::PromptSide)),
    sampling(side(GENERATE, "prompt_logprob_token_ids", Refuse::PromptSide)),
    sampling(row(
        GENERATE,
        "skip_reading_prefix_cache",
        Gets::Sent,
        Gets::Nothing,
        "decode would recompute the whole prompt and end prefill's listener (run on 0.32.0)",
    )),
    or(row(COMPLETIONS, "echo", Gets::Nothing, Gets::Sent, SIDE), Refuse::PromptSideEcho(Some("logprobs"))),
    side(CHAT, "echo", Refuse::PromptSideEcho(None)),
    row(BOTH, "logprobs", Gets::Nothing, Gets::Sent, GROWS),
    row(CHAT, "top_logprobs", Gets::Nothing, Gets::Sent, GROWS),
    // A 400 without the field above, which prefill does not get (seen on 0.32.0).
    row(BOTH, "logprob_token_ids", Gets::Nothing, Gets::Sent, GROWS),
    row(BOTH, "return_token_ids", Gets::Nothing, Gets::Sent, GROWS),
    row(BOTH, "return_prompt_text", Gets::Nothing, Gets::Sent, GROWS),
    row(BOTH, "return_tokens_as_token_ids", Gets::Nothing, Gets::Sent, GROWS),
    sampling(row(GENERATE, "logprobs", Gets::Nothing, Gets::Sent, GROWS)),
    sampling(row(GENERATE, "logprob_token_ids", Gets::Nothing, Gets::Sent, GROWS)),
    row(
        BOTH,
        "structured_outputs",
        Gets::Nothing,
        Gets::Sent,
        "prefill would wait for a grammar in vain (protocol F8)",
    ),
    sampling(row(GENERATE, "structured_outputs", Gets::Nothing, Gets::Sent, "the same")),
    refused(BOTH, "truncate_prompt_tokens", Refuse::CutBelowZero, "each leg would cut by its own limit (protocol F7)"),
    refused(RESPONSES, "truncation", Refuse::CutUnless("disabled"), "the same"),
    refused(
        CHAT,
        "tool_choice",
        Refuse::ForcedTool(EngineVersion::new(0, 24, 0)),
        "older ones may fail on one token of it; not read",
    ),
    row(
        MESSAGES,
        "tool_choice",
        Gets::AnyTool,
        Gets::Sent,
        "one token is no JSON: prefill would fail after its work (protocol F9)",
    ),
    refused(
        RESPONSES,
        "background",
        Refuse::True("is not supported: an answer is relayed while its client waits"),
        ONE_PROCESS,
    ),
    refused(RESPONSES, "previous_response_id", Refuse::Any(TOO_FAR), ONE_PROCESS),
    refused(
        RESPONSES,
        "conversation",
        Refuse::Any(TOO_FAR),
        "engines ignore it: context would be lost unseen (protocol F10)",
    ),
    refused(RESPONSES, "tools", Refuse::ServerTools, "several generations on one transfer (protocol F10)"),
];

/// What whole APIs need: the peer's address in the transfer params alone, and a rank that can be asked for or is told.
pub(super) const API_NEEDS: &[ApiNeed] = &[
    ApiNeed { api: Api::Responses, ranks: None, since: EngineVersion::new(0, 24, 0), what: "the Responses API" },
    ApiNeed {
        api: Api::Responses,
        ranks: Some(Mode::Write),
        since: EngineVersion::new(0, 33, 0),
        what: "the Responses API with several prefill ranks in WRITE",
    },
    ApiNeed {
        api: Api::Responses,
        ranks: Some(Mode::Read),
        since: EngineVersion::new(0, 28, 0),
        what: "the Responses API with several prefill ranks in READ",
    },
    ApiNeed { api: Api::Messages, ranks: None, since: EngineVersion::new(0, 24, 0), what: "the Messages API" },
];
