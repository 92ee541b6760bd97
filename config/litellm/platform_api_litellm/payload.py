"""LiteLLM's StandardLoggingPayload, cut down to what platform-api reads.

A full payload is 12 kB and holds prompts and answers; what is left here is about 1 kB and holds neither. The fields
keep their names and values, so an event that also comes over the `generic_api` callback is recognised as the same one.
"""

import hashlib
import json

FIELDS = (
    "id",
    "litellm_call_id",
    "trace_id",
    "call_type",
    "status",
    "startTime",
    "endTime",
    "response_cost",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "model",
    "model_group",
    "custom_llm_provider",
    "cache_hit",
    "request_tags",
    "end_user",
)
ERROR_FIELDS = ("error_code", "error_class")
# Filled by LiteLLM from the key. Every other field of `metadata` may be written by the client.
METADATA_FIELDS = (
    "user_api_key_hash",
    "user_api_key_alias",
    "user_api_key_team_id",
    "user_api_key_org_id",
    "user_api_key_project_id",
    "user_api_key_user_id",
    "usage_object",
)


def reduced(payload: dict) -> dict:
    """The part of a payload that is counted, attributed or reported."""
    event = _picked(payload, FIELDS)
    event["error_information"] = _picked(payload.get("error_information") or {}, ERROR_FIELDS)
    event["metadata"] = _picked(payload.get("metadata") or {}, METADATA_FIELDS)
    return event


def encoded(event: dict) -> bytes:
    """Compact JSON. What JSON cannot hold becomes text, as in LiteLLM's own callbacks."""
    return json.dumps(event, separators=(",", ":"), default=str).encode()


def message_id(body: bytes) -> str:
    """For `Nats-Msg-Id`: of the content and not of an id that a client may choose, or one tenant could make the
    server drop another one's messages."""
    return "litellm:" + hashlib.sha256(body).hexdigest()


def _picked(source: dict, names: tuple) -> dict:
    return {name: source[name] for name in names if name in source}
