"""What is known of fields by their names: values that mean something, and values that would do harm."""

import json
from dataclasses import dataclass

FLAGS = [True, False, 1, "true", "yes"]
FUNCTION = {
    "name": "look_up",
    "description": "looks up",
    "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

# Transfer params that would harm an engine if a client's ever reached it.
PARAMS = [
    {},
    {"do_remote_prefill": True},
    {"do_remote_decode": True},
    {"do_remote_prefill": True, "do_remote_decode": True},
    {
        "do_remote_prefill": True,
        "transfer_id": "tx-0",
        "remote_host": "127.0.0.1",
        "remote_port": 9,
        "remote_handshake_port": 9,
        "remote_notify_port": 9,
        "remote_engine_id": "127.0.0.1:9",
        "remote_block_ids": [[0, 1]],
        "remote_dp_size": 1,
        "remote_tp_size": 1,
        "tp_size": 1,
    },
    {"do_remote_prefill": True, "transfer_id": "tx-0", "remote_block_ids": [0, 1]},
    {"transfer_id": 5, "remote_block_ids": "all"},
    {"prompt_token_ids": [5, 6, 7]},
    "text",
    [1],
    0,
    True,
]


@dataclass
class Given:
    """Facts on which values depend: some text in the middle of the plain answer, the prompt's token ids and the answer's
    first, and a prompt that is longer than the model takes, as text and as the field that it goes into."""

    middle: str
    tokens: list
    first: list
    long: str
    too_long: dict


class Also:
    """A value with the other fields that it needs in order to mean something."""

    def __init__(self, name, value, **more):
        self.fields = {name: value, **more}

    def within(self, api, name):
        """The same for an API whose sampling fields stand in an object of their own."""
        moved = Also(name, None)
        moved.fields = {
            key if key == name or key in TOP else f"{api.inside}.{key}": value
            for key, value in (
                (name if key == name.rpartition(".")[2] else key, value) for key, value in self.fields.items()
            )
        }
        return moved


# Of the fields that come along with others, those that stand at the top of every body.
TOP = {"stream", "stream_options", "token_ids", "output_mode", "kv_transfer_params"}


def prompts(api, given):
    """Other prompts for the field that holds it."""
    if api.name == "completions":
        return [
            "",
            [],
            [5],
            [[5, 6]],
            ["one"],
            ["one", "two"],
            [[5, 6], [7, 8]],
            [-1],
            [10**9],
            given.long,
            given.tokens,
            "\u0000",
            "é 😀",
        ]
    if api.name == "generate":
        return [[], [5], [-1], [10**9], [[5]], ["5"], [1.5], given.tokens * 40]
    user = {"role": "user", "content": "one two"}
    parts = [
        [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        [],
        "",
        None,
        [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "one"}],
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE[22:]}}],
        [{"type": "input_text", "text": "one"}],
        [{"type": "input_image", "image_url": PICTURE, "detail": "auto"}],
        [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}],
        [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}],
        [{"type": "file", "file": {"file_id": "x"}}],
        [{"type": "nonsense"}],
        given.long,
    ]
    turns = [
        [{"role": "system", "content": "one"}, user],
        [{"role": "developer", "content": "one"}, user],
        [user, {"role": "assistant", "content": "two"}, user],
        [user, {"role": "assistant", "content": "two"}],
        [
            user,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "a", "content": "three"},
        ],
        [
            user,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look_up", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "three"}]},
        ],
        [{"role": "nonsense", "content": "one"}],
        [{"role": "assistant", "content": "one"}],
        [{"content": "one"}],
        [
            {"type": "function_call", "call_id": "a", "name": "look_up", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "three"},
        ],
        [{"type": "item_reference", "id": "msg_1"}],
        [],
    ]
    return (
        turns
        + [[{"role": "user", "content": content}] for content in parts]
        + (["one two", ""] if api.name == "responses" else [])
    )


GIVEN = {
    "stop": [
        lambda given: given.middle,
        lambda given: [given.middle],
        lambda given: Also("stop", [given.middle], include_stop_str_in_output=True),
    ],
    "stop_sequences": [lambda given: [given.middle]],
    # What ends an answer at its first token would end prefill's, too.
    "stop_token_ids": [
        lambda given: given.first,
        lambda given: Also("stop_token_ids", given.first, ignore_eos=True),
        lambda given: Also("stop_token_ids", given.first, min_tokens=2),
    ],
    "logit_bias": [lambda given: {str(token): -100 for token in given.first}],
    "allowed_token_ids": [lambda given: given.first],
    "truncate_prompt_tokens": [
        lambda given: Also("truncate_prompt_tokens", -1, **given.too_long),
        lambda given: Also("truncate_prompt_tokens", 10, **given.too_long),
    ],
    "truncation": [
        lambda given: Also("truncation", "auto", **given.too_long),
        lambda given: Also("truncation", "disabled", **given.too_long),
    ],
}

COMMON = {
    "model": ["nonsense"],
    "stream": [True, False, 1, "true", 0, "false", 2],
    "n": [1, 2, 0, -1, 1.0, 2.0, "2", True, Also("n", 2, temperature=1, seed=1)],
    "best_of": [1, 2, 2.0, "2"],
    "use_beam_search": [*FLAGS, Also("use_beam_search", True, n=2), Also("use_beam_search", 1, n=1)],
    "temperature": [0, 1, 2, -1, 1e-9, "0", Also("temperature", 1, seed=7)],
    "top_p": [0.1, 1, 0, 1.5, "0.5"],
    "top_k": [1, 0, -1, -2, 5],
    "min_p": [0.5, 0, 1, 2],
    "seed": [0, 42, -1, 2**63 - 1, 1.0],
    "presence_penalty": [2, -2, 2.1],
    "frequency_penalty": [2, -2, 2.1],
    "repetition_penalty": [1.3, 0.5, 0],
    "max_tokens": [1, 0, 2, -1, 1.0, 8.0, "8", True],
    "max_completion_tokens": [1, 0, 2, -1, 1.0, "8"],
    "max_output_tokens": [1, 0, 2, -1, 1.0, "8"],
    "min_tokens": [0, 1, 4, 8, 9, -1, 4.0, "4", Also("min_tokens", 1, max_tokens=1)],
    "ignore_eos": FLAGS,
    "prompt_logprobs": [
        0,
        1,
        -1,
        5,
        -2,
        100000,
        1.0,
        "1",
        True,
        False,
        Also("prompt_logprobs", 1, max_tokens=1),
        Also("prompt_logprobs", 0, max_tokens=1),
        Also("prompt_logprobs", 1, logprobs=1),
    ],
    "prompt_logprob_token_ids": [[[5, 6]], [[5]] * 3, [], [[]], [[-1]], [[10**9]], "x"],
    "prompt_logprob_start": [0, 1, 10**6, -1, Also("prompt_logprob_start", 1, prompt_logprobs=1)],
    "skip_reading_prefix_cache": FLAGS,
    "output_kind": [0, 1, 2, 3, "FINAL_ONLY"],
    "trace_decode_token_ids": [[5, 6, 7], [], [-1], [10**9]],
    "flat_logprobs": [True, Also("flat_logprobs", True, logprobs=1), Also("flat_logprobs", True, prompt_logprobs=1)],
    "detokenize": [True, False, Also("detokenize", False, stop=["x"])],
    "skip_clone": FLAGS,
    "output_text_buffer_length": [0, 5, -1, 10**6],
    "_all_stop_token_ids": [[5], []],
    "_eos_token_id": [5],
    "extra_args": [{"a": 1}, *({"kv_transfer_params": params} for params in PARAMS), {"ec_transfer_params": {"a": 1}}],
    "vllm_xargs": [
        {"a": 1, "b": "x", "c": [1, "x"]},
        {"kv_transfer_params": "x"},
        {"kv_transfer_params": 1},
        {"kv_transfer_params": ["x"]},
        {"ec_transfer_params": "x"},
        {"session_id": "x"},
        {"kv_cache_report_mode": "full"},
        {"a": {"b": 1}},
    ],
    "kv_transfer_params": PARAMS,
    "ec_transfer_params": [{}, {"a": 1}, {"do_remote_prefill": True}, "x"],
    "stop": [[], "", [""], ["\n\n"], ["a", "b", "c", "d"], ["x"] * 5, ["x"] * 40, [5], "e"],
    "stop_sequences": [[], [""], ["zzz"], ["a", "b", "c", "d"], ["x"] * 5, ["x"] * 40, "e"],
    "stop_token_ids": [[], [5], list(range(1000)), [-1], [10**9], ["a"], [1.5]],
    "include_stop_str_in_output": [*FLAGS, Also("include_stop_str_in_output", True, stop=["e"])],
    "logit_bias": [{}, {"5": 100}, {"5": -100}, {"5": 1000}, {"-1": 1}, {"1000000000": 1}, {"a": 1}, {"5": "1"}],
    "allowed_token_ids": [[5, 6, 7], [], [-1], [10**9], ["a"]],
    "bad_words": [["the"], [], [""], [" "], ["nonsense words of several tokens"], [5]],
    "structured_outputs": [
        {"choice": ["yes", "no"]},
        {"regex": "[a-z]{3}"},
        {"json": SCHEMA},
        {"json": json.dumps(SCHEMA)},
        {"json_object": True},
        {"grammar": 'root ::= "yes" | "no"'},
        {},
        {"choice": []},
        {"regex": "["},
        {"json": {"type": "nonsense"}},
        {"grammar": "nonsense"},
        {"choice": ["yes"], "regex": "a"},
        {"structural_tag": "{}"},
        {"choice": "yes"},
        {"choice": ["yes"], "disable_any_whitespace": True},
        {"choice": ["yes"], "whitespace_pattern": "[ ]"},
        Also("structured_outputs", {"choice": ["yes", "no"]}, max_tokens=1),
    ],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        {"type": "json_schema"},
        {"type": "structural_tag", "format": {"type": "any_text"}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}},
        {"type": "nonsense"},
        {},
    ],
    "truncate_prompt_tokens": [
        -1,
        1,
        10,
        0,
        10**6,
        -2,
        1.0,
        "10",
        Also("truncate_prompt_tokens", 10, truncation_side="left"),
        Also("truncate_prompt_tokens", 10, truncation_side="right"),
    ],
    "truncation_side": [Also("truncation_side", "left", truncate_prompt_tokens=5)],
    "add_special_tokens": FLAGS,
    "cache_salt": ["salt", "", "x" * 128, "x" * 129, "a@b", "a/b", "é"],
    "priority": [0, 1, -1, 5, 2**63 - 1, "1", 1.0],
    "session_id": ["session", "", "x" * 5000, "a b\r\nc: d"],
    "request_id": [
        "mine",
        "",
        "a b/c",
        "x" * 5000,
        "é",
        "a\u0000b",
        "a\r\nb: c",
        "___prefill_addr_host:127.0.0.1,handshake:9,notify:9___decode_addr_host:127.0.0.1,handshake:9,notify:9_" + "0" * 32,
    ],
    "user": ["me", "", "x" * 5000],
    "metadata": [{}, {"a": "b"}, {"a": 1}, {"user_id": "x"}],
    "return_token_ids": [*FLAGS, Also("return_token_ids", True, logprobs=1)],
    "return_tokens_as_token_ids": [True, Also("return_tokens_as_token_ids", True, logprobs=1)],
    "return_token_offsets": FLAGS,
    "return_prompt_text": FLAGS,
    "prompt_token_ids": [[5, 6, 7], [], "x"],
    "logprob_token_ids": [
        Also("logprob_token_ids", [5, 6], logprobs=1),
        [5, 6],
        [],
        Also("logprob_token_ids", [-1], logprobs=1),
        Also("logprob_token_ids", [10**9], logprobs=1),
    ],
    "repetition_detection": [
        {"max_pattern_size": 3, "min_count": 2},
        {},
        {"max_pattern_size": 3, "min_pattern_size": 1, "min_count": 3},
        {"max_pattern_size": -1},
        {"max_pattern_size": 3, "min_count": 1},
    ],
    "stream_interval": [1, 5, 1000, 0, "1"],
    "thinking_token_budget": [5, 0, -1, -2],
    "routed_experts_prompt_start": [0, 1, 10**6],
    "length_penalty": [0, 1, 2],
    "suffix": ["end", ""],
    "documents": [[{"title": "a", "text": "b"}], [], [{"a": 1}]],
    "chat_template": ["{{ messages[0].content }}", "", "{{ nonsense", "{% for m in messages %}{{ m.content }}{% endfor %}"],
    "chat_template_kwargs": [
        {},
        {"enable_thinking": False},
        {"a": {"b": [1]}},
        {"add_generation_prompt": False},
        {"chat_template": "x"},
        {"tokenize": True},
    ],
    "add_generation_prompt": FLAGS,
    "continue_final_message": [
        True,
        Also("continue_final_message", True, add_generation_prompt=False),
        Also(
            "continue_final_message",
            True,
            add_generation_prompt=False,
            messages=[{"role": "user", "content": "one two"}, {"role": "assistant", "content": "the"}],
        ),
    ],
    "reasoning_effort": ["none", "low", "high"],
    "include_reasoning": FLAGS,
    "parallel_tool_calls": FLAGS,
    "media_io_kwargs": [{}, {"image": {"a": 1}}, {"video": {"num_frames": 1}}],
    "mm_processor_kwargs": [{}, {"a": 1}],
    "mm_payload": ["none", "tensors"],
    "watermarking": FLAGS,
    "stream_options": [
        {"include_usage": True},
        {"include_usage": False},
        {"include_usage": True, "continuous_usage_stats": True},
        {"continuous_usage_stats": True},
        {},
        {"nonsense": 1},
        {"include_usage": "nonsense"},
    ],
    "service_tier": ["auto", "flex"],
    "min_length": [1],
}

TOOL = {"type": "function", "function": FUNCTION}
FLAT_TOOL = {"type": "function", **FUNCTION}
PLAIN_TOOL = {"name": "look_up", "input_schema": FUNCTION["parameters"]}
SERVER_TOOLS = [
    {"type": "web_search_preview"},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "mcp", "server_label": "x", "server_url": "http://127.0.0.1:9", "require_approval": "never"},
]

# Fields that mean another thing, or take another form, in one API.
OWN = {
    ("completions", "logprobs"): [0, 1, 5, -1, -2, 100000, 1.0, "1", True, Also("logprobs", 1, max_tokens=1)],
    ("completions", "echo"): [
        Also("echo", True, logprobs=1),
        Also("echo", True, logprobs=0),
        Also("echo", True, max_tokens=0),
        Also("echo", True, max_tokens=1),
        Also("echo", True, logprobs=1, max_tokens=1),
        Also("echo", True, logprobs=1, max_tokens=0),
        Also("echo", 1, logprobs=1),
        Also("echo", "true", logprobs=1),
        Also("echo", True, logprobs=1.0),
        Also("echo", True, logprobs=True),
        Also("echo", False, logprobs=1),
        Also("echo", True, prompt_logprobs=0),
        Also("echo", True, return_token_ids=True),
        Also("echo", True, n=2),
        Also("echo", True, prompt=[5, 6, 7]),
        *FLAGS,
    ],
    ("completions", "prompt_embeds"): [
        "AAAA",
        [],
        ["AAAA"],
        ["AAAA", "AAAA"],
        Also("prompt_embeds", "AAAA", prompt=None),
        "x",
    ],
    ("generate", "logprobs"): [0, 1, 5, -1, -2, 100000, 1.0, "1", True, Also("logprobs", 1, max_tokens=1)],
    ("generate", "output_mode"): [
        "text",
        "tokens",
        Also("output_mode", "text", logprobs=1),
        Also("output_mode", "text", detokenize=False),
    ],
    ("generate", "content_parts"): [
        [],
        [{"type": "text", "text": "x"}],
        [{"type": "image_url", "image_url": {"url": PICTURE}}],
    ],
    ("generate", "features"): [
        {},
        {"mm_hashes": {}, "mm_placeholders": {}},
        {"mm_hashes": {"image": ["a"]}, "mm_placeholders": {"image": [{"offset": 0, "length": 1}]}},
    ],
    ("generate", "reasoning_parser_kwargs"): [{}, {"chat_template_kwargs": {}}, {"a": 1}],
    ("generate", "token_offsets"): [[], [[0, 1]]],
    ("generate", "sampling_params"): [{}, {"max_tokens": 8}, {"nonsense": 1, "max_tokens": 8}],
    ("chat", "logprobs"): [*FLAGS, Also("logprobs", True, top_logprobs=0), Also("logprobs", True, top_logprobs=2)],
    ("chat", "top_logprobs"): [
        1,
        Also("top_logprobs", 0, logprobs=True),
        Also("top_logprobs", 3, logprobs=True),
        Also("top_logprobs", -1, logprobs=True),
        Also("top_logprobs", -2, logprobs=True),
        Also("top_logprobs", 100000, logprobs=True),
    ],
    ("chat", "echo"): [
        *FLAGS,
        Also("echo", True, logprobs=True),
        Also("echo", True, logprobs=True, top_logprobs=1),
        Also("echo", True, top_logprobs=1),
        Also("echo", True, max_tokens=1),
        Also(
            "echo",
            True,
            add_generation_prompt=False,
            continue_final_message=True,
            messages=[{"role": "user", "content": "one"}, {"role": "assistant", "content": "the"}],
        ),
    ],
    ("chat", "tools"): [
        [TOOL],
        [TOOL, TOOL],
        [{"type": "function"}],
        [{"type": "nonsense"}],
        [FLAT_TOOL],
        [{**TOOL, "defer_loading": True}],
    ],
    ("chat", "tool_choice"): [
        *(
            Also("tool_choice", choice, tools=[TOOL])
            for choice in (
                {"type": "function", "function": {"name": "look_up"}},
                "required",
                "auto",
                "none",
                {"type": "function", "function": {"name": "nonsense"}},
                None,
                "nonsense",
                {},
            )
        ),
        Also("tool_choice", "required", tools=[TOOL], max_tokens=1),
        Also("tool_choice", "required", tools=[TOOL], parallel_tool_calls=False),
        "required",
        "none",
    ],
    ("chat", "functions"): [[FUNCTION]],
    ("responses", "tools"): [[FLAT_TOOL], [], [TOOL], *([tool] for tool in SERVER_TOOLS), [{"type": "nonsense"}]],
    ("responses", "tool_choice"): [
        *(
            Also("tool_choice", choice, tools=[FLAT_TOOL])
            for choice in (
                {"type": "function", "name": "look_up"},
                "required",
                "auto",
                "none",
                {"type": "function", "name": "nonsense"},
                "nonsense",
            )
        ),
        *(Also("tool_choice", {"type": tool["type"]}, tools=[tool]) for tool in SERVER_TOOLS),
        "required",
    ],
    ("responses", "background"): [True, False, Also("background", True, store=True), 1, "true"],
    ("responses", "store"): FLAGS,
    ("responses", "previous_response_id"): ["resp_nonsense", "", "resp_" + "0" * 32],
    ("responses", "conversation"): ["conv_1", {"id": "conv_1"}, ""],
    ("responses", "prompt"): [{"id": "p"}, {"id": "p", "variables": {"a": "b"}}],
    ("responses", "include"): [
        [],
        ["reasoning.encrypted_content"],
        ["message.output_text.logprobs"],
        ["nonsense"],
        Also("include", ["message.output_text.logprobs"], top_logprobs=2),
        ["code_interpreter_call.outputs"],
    ],
    ("responses", "top_logprobs"): [0, 1, 5, -1, 100000],
    ("responses", "truncation"): ["auto", "disabled"],
    ("responses", "text"): [
        {"format": {"type": "text"}},
        {"format": {"type": "json_object"}},
        {"verbosity": "low"},
        {},
        {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
        {"format": {"type": "json_schema"}},
        {"format": {"type": "nonsense"}},
    ],
    ("responses", "reasoning"): [{"effort": effort} for effort in ("none", "low", "high", "nonsense", None)]
    + [{}, {"summary": "auto"}],
    ("responses", "instructions"): ["be brief", "", "x" * 300],
    ("responses", "max_tool_calls"): [0, 1],
    ("responses", "previous_input_messages"): [[], [{"role": "user", "content": "one"}]],
    ("responses", "enable_response_messages"): FLAGS,
    ("responses", "max_tokens"): [4],
    ("responses", "min_tokens"): [4],
    ("responses", "logprobs"): [1],
    ("responses", "echo"): [True],
    ("messages", "system"): [
        "be brief",
        "",
        [{"type": "text", "text": "be brief"}],
        [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
        [{"type": "text", "text": "x-anthropic-billing-header: a"}, {"type": "text", "text": "x"}],
        [],
    ],
    ("messages", "tools"): [
        [PLAIN_TOOL],
        [],
        [{"name": "look_up"}],
        [TOOL],
        [{**PLAIN_TOOL, "defer_loading": True}],
        [{"type": "web_search_20250305", "name": "web_search"}],
    ],
    ("messages", "tool_choice"): [
        {"type": "auto"},
        *(
            Also("tool_choice", choice, tools=[PLAIN_TOOL])
            for choice in (
                {"type": "auto"},
                {"type": "any"},
                {"type": "none"},
                {"type": "tool", "name": "look_up"},
                {"type": "tool"},
                {"type": "tool", "name": "nonsense"},
                {"type": "auto", "disable_parallel_tool_use": True},
                {"type": "nonsense"},
            )
        ),
        Also("tool_choice", {"type": "tool", "name": "look_up"}, tools=[PLAIN_TOOL], max_tokens=1),
    ],
    ("messages", "thinking"): [
        {"type": "disabled"},
        {"type": "adaptive"},
        {"type": "enabled", "budget_tokens": 1024},
        {"type": "enabled", "budget_tokens": 5},
        {"type": "enabled"},
        {"type": "adaptive", "display": "omitted"},
    ],
    ("messages", "output_config"): [
        {},
        {"effort": "low"},
        {"effort": "nonsense"},
        {"format": {"type": "json_schema", "schema": SCHEMA}},
        {"format": {"type": "json_schema"}},
    ],
}

# What engines do not list and clients send all the same.
UNLISTED = {
    "completions": ["best_of", "prompt_token_ids", "metadata", "store", "service_tier", "nonsense"],
    "chat": [
        "best_of",
        "prompt_token_ids",
        "functions",
        "metadata",
        "store",
        "service_tier",
        "max_output_tokens",
        "nonsense",
    ],
    "responses": [
        "conversation",
        "min_tokens",
        "max_tokens",
        "n",
        "logprobs",
        "prompt_logprobs",
        "echo",
        "use_beam_search",
        "truncate_prompt_tokens",
        "stream_options",
        "nonsense",
    ],
    "messages": [
        "min_tokens",
        "ignore_eos",
        "priority",
        "request_id",
        "session_id",
        "seed",
        "n",
        "prompt_logprobs",
        "echo",
        "use_beam_search",
        "container",
        "service_tier",
        "mcp_servers",
        "nonsense",
    ],
    "generate": [
        "user",
        "request_id",
        "nonsense",
        "sampling_params.best_of",
        "sampling_params.use_beam_search",
        "sampling_params.nonsense",
    ],
}
