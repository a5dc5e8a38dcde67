"""Which fields an engine lists for each API, and of what kind each is."""

import json
from dataclasses import dataclass, field


@dataclass
class Field:
    """One field of a request. `kinds` are JSON's, `choices` the values of an enumeration."""

    name: str
    kinds: set = field(default_factory=set)
    choices: list = field(default_factory=list)
    least: object = None
    most: object = None


def fields(server, api):
    """What the engine lists by `/openapi.json`, and whether it did; else what vLLM 0.32.0 lists."""
    try:
        status, text = server.get("/openapi.json", 60)
        document = json.loads(text) if status == 200 else {}
        body = document["paths"][api.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    except (OSError, ValueError, KeyError, TypeError):
        return list(_known(api)), False
    return list(_read(_Schema(document), body, api)), True


def _read(schema, body, api):
    for name, value in schema.properties(body):
        inner = list(schema.properties(value)) if name == api.inside else []
        for key, part in inner:
            yield schema.field(f"{name}.{key}", part)
        # An object whose parts the engine does not list is tried by the parts that are known.
        if name == api.inside and not inner:
            yield from (field for field in _known(api) if "." in field.name)
        yield schema.field(name, value)


class _Schema:
    """A document whose schemas refer to each other."""

    def __init__(self, document):
        self.document = document

    def alternatives(self, schema, depth=0):
        """The plain schemas that `schema` comes to."""
        if depth > 8:
            return
        if "$ref" in schema:
            found = self.document
            for part in schema["$ref"].lstrip("#/").split("/"):
                found = found[part]
            yield from self.alternatives(found, depth + 1)
            return
        several = [part for key in ("anyOf", "oneOf", "allOf") for part in schema.get(key, ())]
        for part in several:
            yield from self.alternatives(part, depth + 1)
        if not several:
            yield schema

    def properties(self, schema):
        for part in self.alternatives(schema):
            yield from part.get("properties", {}).items()

    def field(self, name, schema):
        result = Field(name)
        for part in self.alternatives(schema):
            kind = part.get("type", "any")
            result.kinds.update([kind] if isinstance(kind, str) else kind)
            result.choices += part.get("enum", [part["const"]] if "const" in part else [])
            result.least = part.get("minimum", result.least)
            result.most = part.get("maximum", result.most)
        return result


KINDS = {"b": "boolean", "i": "integer", "n": "number", "s": "string", "a": "array", "o": "object", "?": "null", "*": "any"}


def _known(api):
    for word in KNOWN[api.name].split():
        name, _, letters = word.partition(":")
        yield Field(name, {KINDS[letter] for letter in letters})


# Name and kinds of every field in the document of vLLM 0.32.0, for engines that do not serve theirs.
KNOWN = {
    "completions": """
        model:?s prompt:?as echo:?b frequency_penalty:?n logit_bias:?o logprobs:?i max_tokens:?i n:i
        presence_penalty:?n seed:?i stop:?as stream:?b stream_options:?o suffix:?s temperature:?n top_p:?n user:?s
        use_beam_search:b top_k:?i min_p:?n repetition_penalty:?n watermarking:?b length_penalty:n stop_token_ids:?a
        include_stop_str_in_output:b ignore_eos:b min_tokens:i skip_special_tokens:b spaces_between_special_tokens:b
        truncate_prompt_tokens:?i truncation_side:?s allowed_token_ids:?a prompt_logprobs:?i logprob_token_ids:?a
        bad_words:a prompt_embeds:?as add_special_tokens:b response_format:?o structured_outputs:?o priority:i
        request_id:s session_id:?s return_tokens_as_token_ids:?b return_token_ids:?b routed_experts_prompt_start:i
        return_token_offsets:?b mm_payload:s return_mm_kwargs:?b cache_salt:?s kv_transfer_params:?o
        ec_transfer_params:?o vllm_xargs:?o repetition_detection:?o thinking_token_budget:?i stream_interval:?i
    """,
    "chat": """
        messages:a model:?s frequency_penalty:?n logit_bias:?o logprobs:?b top_logprobs:?i max_tokens:?i
        max_completion_tokens:?i n:?i presence_penalty:?n response_format:?o seed:?i stop:?as stream:?b
        stream_options:?o temperature:?n top_p:?n tools:?a tool_choice:?os reasoning_effort:?s
        thinking_token_budget:?i include_reasoning:b parallel_tool_calls:?b user:?s use_beam_search:b top_k:?i
        min_p:?n repetition_penalty:?n watermarking:?b length_penalty:n stop_token_ids:?a
        include_stop_str_in_output:b ignore_eos:b min_tokens:i skip_special_tokens:b spaces_between_special_tokens:b
        truncate_prompt_tokens:?i truncation_side:?s prompt_logprobs:?i logprob_token_ids:?a allowed_token_ids:?a
        bad_words:a echo:b add_generation_prompt:b continue_final_message:b add_special_tokens:b documents:?a
        chat_template:?s chat_template_kwargs:?o media_io_kwargs:?o mm_processor_kwargs:?o structured_outputs:?o
        priority:i request_id:s session_id:?s return_tokens_as_token_ids:?b return_token_ids:?b
        routed_experts_prompt_start:i return_token_offsets:?b return_prompt_text:?b mm_payload:s return_mm_kwargs:?b
        cache_salt:?s kv_transfer_params:?o ec_transfer_params:?o vllm_xargs:?o repetition_detection:?o
        stream_interval:?i
    """,
    "responses": """
        background:?b include:?a input:as instructions:?s max_output_tokens:?i max_tool_calls:?i metadata:?o
        model:?s logit_bias:?o parallel_tool_calls:?b previous_response_id:?s prompt:?o reasoning:?o
        include_reasoning:b service_tier:s store:?b stream:?b temperature:?n text:?o tool_choice:os tools:a
        top_logprobs:?i top_p:?n top_k:?i min_p:?n truncation:?s user:?s skip_special_tokens:b
        include_stop_str_in_output:b presence_penalty:?n frequency_penalty:?n prompt_cache_key:?s watermarking:?b
        request_id:s session_id:?s media_io_kwargs:?o mm_processor_kwargs:?o priority:i mm_payload:s
        return_mm_kwargs:?b cache_salt:?s enable_response_messages:b previous_input_messages:?a
        structured_outputs:?o repetition_penalty:?n seed:?i stop:?as stop_token_ids:?a ignore_eos:b vllm_xargs:?o
        kv_transfer_params:?o ec_transfer_params:?o chat_template_kwargs:?o
    """,
    "messages": """
        model:s messages:a max_tokens:i metadata:?o output_config:?o thinking:?o stop_sequences:?a stream:?b
        system:?as temperature:?n tool_choice:?o tools:?a top_k:?i top_p:?n mm_payload:s return_mm_kwargs:?b
        cache_salt:?s watermarking:?b kv_transfer_params:?o ec_transfer_params:?o vllm_xargs:?o
        chat_template_kwargs:?o
    """,
    "generate": """
        request_id:s token_ids:a token_offsets:?a features:?o content_parts:?a sampling_params.n:i
        sampling_params.presence_penalty:n sampling_params.frequency_penalty:n sampling_params.repetition_penalty:n
        sampling_params.temperature:n sampling_params.watermarking:?b sampling_params.top_p:n
        sampling_params.top_k:i sampling_params.min_p:n sampling_params.seed:?i sampling_params.stop:?as
        sampling_params.stop_token_ids:?a sampling_params.ignore_eos:b sampling_params.max_tokens:?i
        sampling_params.min_tokens:i sampling_params.logprobs:?i sampling_params.prompt_logprobs:?i
        sampling_params.prompt_logprob_token_ids:?a sampling_params.prompt_logprob_start:?i
        sampling_params.logprob_token_ids:?a sampling_params.flat_logprobs:b sampling_params.detokenize:b
        sampling_params.skip_special_tokens:b sampling_params.spaces_between_special_tokens:b
        sampling_params.include_stop_str_in_output:b sampling_params.output_kind:i
        sampling_params.stream_interval:?i sampling_params.skip_clone:b sampling_params.output_text_buffer_length:i
        sampling_params.structured_outputs:?o sampling_params.logit_bias:?o sampling_params.allowed_token_ids:?a
        sampling_params.extra_args:?o sampling_params.bad_words:?a sampling_params.skip_reading_prefix_cache:?b
        sampling_params.thinking_token_budget:?i sampling_params.repetition_detection:?o
        sampling_params.routed_experts_prompt_start:i sampling_params.trace_decode_token_ids:?a sampling_params:o
        model:?s reasoning_ended:?b reasoning_parser_kwargs:?o return_token_ids:?b output_mode:s stream:?b
        stream_options:?o cache_salt:?s priority:i kv_transfer_params:?o ec_transfer_params:?o
    """,
}
