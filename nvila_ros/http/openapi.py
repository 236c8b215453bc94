"""What the door serves, as an OpenAPI document; tests hold both against each other."""

from __future__ import annotations

import dataclasses
from typing import Any

from nvila_ros.config import bounds
from nvila_ros.http.limits import MAX_MESSAGES, MAX_STOPS, MAX_TOP_LOGPROBS, NUM_KEPT
from nvila_ros.serving.admission import MAX_CHOICES, MAX_PRIORITY
from nvila_ros.standing.query import StandingQuery

Schema = dict[str, Any]
STAMP: Schema = {"type": "string", "pattern": "^[0-9]{1,19}$", "description": "Nanoseconds; as text, being too long."}
_PLAIN_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def document(version: str) -> Schema:
    """Return the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nvila_ros",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {**_chat_paths(), **_page_paths(), **_plain_paths()},
        "components": {
            "schemas": {
                "ChatRequest": _chat_request(),
                "StandingQuery": standing_query(),
                "Error": _error(),
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _chat_paths() -> Schema:
    body = {"required": True, "content": {"application/json": {"schema": _ref("ChatRequest")}}}
    found = {"application/json": {"schema": {"type": "object", "required": ["choices", "nvila"]}}, **_stream()}
    post = {
        "operationId": "chat",
        "summary": "Ask a question about pictures, or about the robot's own frames.",
        "parameters": [_header("X-Nvila-Deadline", {"type": "string"})],
        "requestBody": body,
        "responses": _responses({"200": {"description": "the answer", "content": found}}, 404, 413, 415, 429, 500, 503),
    }
    return {
        "/v1/chat/completions": {"post": post},
        "/v1/models": {"get": _get("models", "List the models.")},
        "/v1/models/{name}": {"get": _get("model", "Show a model.", _path("name"), errors=(404,))},
    }


def _page_paths() -> Schema:
    name, width = _path("name"), _query("width", _whole(0, 7680))
    jpeg = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
    stamp = _query("stamp_ns", STAMP, is_required=True)
    latest = _get("latest", "Show a camera's newest frame.", name, width, _query("after_ns", STAMP), content=jpeg)
    latest["responses"]["204"] = {"description": "no other frame came"}
    latest["responses"]["404"] = _failure()
    return {
        "/api/state": {"get": _get("state", "Show all that a viewer needs at first sight.")},
        "/api/events": {"get": _get("events", "Stream what happens.", content=_stream(), errors=(429,))},
        "/api/answers": {"get": _get("answers", "Show the last answers.", _query("limit", _whole(0, NUM_KEPT)))},
        "/api/answers/{name}": {"get": _get("answer", "Show an answer.", name, errors=(404,))},
        "/api/cameras/{name}/latest.jpg": {"get": latest},
        "/api/cameras/{name}/frame": {
            "get": _get("frame", "Show the frame of a stamp.", name, stamp, width, content=jpeg, errors=(404,))
        },
        "/api/standing": {"get": _get("list_standing", "Show the standing queries."), "post": _add_standing()},
        "/api/standing/{name}": _one_standing(name),
    }


def _add_standing() -> Schema:
    return {
        "operationId": "add_standing",
        "summary": "Let a query stand.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("StandingQuery")}}},
        "responses": _responses({"201": {"description": "it stands", "content": _object()}}, 413, 415),
    }


def _one_standing(name: Schema) -> Schema:
    change = {
        "type": "object",
        "properties": {"enabled": {"type": "boolean"}},
        "required": ["enabled"],
        "additionalProperties": False,
    }
    return {
        "patch": {
            "operationId": "change_standing",
            "summary": "Pause a standing query, or go on.",
            "parameters": [name],
            "requestBody": {"required": True, "content": {"application/json": {"schema": change}}},
            "responses": _responses({"200": {"description": "done", "content": _object()}}, 404, 413, 415),
        },
        "delete": {
            "operationId": "remove_standing",
            "summary": "Forget a standing query.",
            "parameters": [name],
            "responses": _responses({"204": {"description": "done"}}, 404),
        },
    }


def _plain_paths() -> Schema:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/health": {"get": _get("health", "Say that the process is alive.", errors=(503,), is_open=True)},
        "/ready": {"get": _get("ready", "Say whether questions are answered.", errors=(503,), is_open=True)},
        "/version": {"get": _get("version", "Say which version serves.")},
        "/metrics": {"get": _get("metrics", "Show what Prometheus reads.", content=text)},
        "/openapi.json": {"get": _get("openapi", "Show this document.")},
    }


def _chat_request() -> Schema:
    text = {"type": "string", "minLength": 1, "maxLength": 1000}
    part = {
        "oneOf": [
            _record({"type": {"const": "text"}, "text": text}, "type", "text"),
            _record({"type": {"const": "image_url"}, "image_url": _url()}, "type", "image_url"),
            _record({"type": {"const": "video_url"}, "video_url": _url()}, "type", "video_url"),
        ]
    }
    content = {"oneOf": [text, {"type": "array", "items": part, "minItems": 1, "maxItems": 8}]}
    message = _record({"role": {"enum": ["system", "user", "assistant"]}, "content": content}, "role", "content")
    fields = {
        "model": {"type": "string"},
        "messages": {"type": "array", "items": message, "minItems": 1, "maxItems": MAX_MESSAGES},
        "stream": {"type": "boolean"},
        "stream_options": _record({"include_usage": {"type": "boolean"}}),
        "max_tokens": _whole(1, 8192),
        "max_completion_tokens": _whole(1, 8192),
        "stop": {"oneOf": [{"type": "string"}, {"type": "array", "items": text, "maxItems": MAX_STOPS}]},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "seed": {"type": "integer"},
        "logprobs": {"type": "boolean"},
        "top_logprobs": _whole(0, MAX_TOP_LOGPROBS),
        "response_format": _response_format(),
        "structured_outputs": _record({"choice": _choices(), "json": {"type": "object"}}),
        "guided_choice": _choices(),
        "guided_json": {"type": "object"},
        "answer_type": {"const": "when"},
        "priority": _whole(0, MAX_PRIORITY),
        "deadline_s": {"type": "number", "minimum": 0.001, "maximum": 3600},
        "conversation": {"type": "string", "maxLength": 256},
        "user": {"type": "string"},
    }
    return {"type": "object", "properties": fields, "required": ["messages"]}


def _url() -> Schema:
    address = {
        "type": "string",
        "minLength": 1,
        "description": "A data URI, or an address of nvila:; never of the web.",
    }
    frames = {"type": "integer", "minimum": 1, "maximum": 64}
    return {"oneOf": [address, _record({"url": address, "frames": frames}, "url")]}


def _response_format() -> Schema:
    named = _record({"name": {"type": "string"}, "schema": {"type": "object"}}, "schema")
    return {
        "oneOf": [
            _record({"type": {"enum": ["text", "json_object"]}}, "type"),
            _record({"type": {"const": "json_schema"}, "json_schema": named}, "type", "json_schema"),
        ]
    }


def _choices() -> Schema:
    text = {"type": "string", "minLength": 1}
    return {"type": "array", "items": text, "minItems": 1, "maxItems": MAX_CHOICES, "uniqueItems": True}


def standing_query() -> Schema:
    """Return the schema of a standing query, from the fields of its class."""
    known = bounds(StandingQuery)
    properties: Schema = {"replace": {"type": "boolean", "description": "take the place of one of that name"}}
    for field in dataclasses.fields(StandingQuery):
        bound, default = known[field.name], field.default
        schema: Schema = {"description": bound.doc, "default": list(default) if isinstance(default, tuple) else default}
        if isinstance(default, tuple):
            schema |= {"type": "array", "items": {"type": "string"}}
        else:
            schema |= {"type": _PLAIN_TYPES[type(default)]}
        if bound.choices:
            schema["enum"] = list(bound.choices)
        if bound.low is not None and bound.high is not None:
            schema |= {"minimum": bound.low, "maximum": bound.high}
        properties[field.name] = schema
    properties["name"] |= {"pattern": r"^[A-Za-z0-9_][A-Za-z0-9_./-]{0,63}$"}
    return {
        "type": "object",
        "properties": properties,
        "required": ["name", "question"],
        "additionalProperties": False,
    }


def _error() -> Schema:
    text = {"type": "string"}
    optional = {"type": ["string", "null"]}
    error = _record({"message": text, "type": text, "param": optional, "code": optional}, "message", "type")
    return _record({"error": error}, "error")


def _get(name: str, summary: str, *parameters: Schema, **more: Any) -> Schema:
    found = {"description": "found", "content": more.get("content", _object())}
    get: Schema = {
        "operationId": name,
        "summary": summary,
        "responses": _responses({"200": found}, *more.get("errors", ())),
    }
    if parameters:
        get["parameters"] = list(parameters)
    if more.get("is_open"):
        get["security"] = []
        get["responses"]["503"] = {"description": "not so; the body says why", "content": _object()}
    return get


def _responses(found: Schema, *errors: int) -> Schema:
    return found | {str(status): _failure() for status in sorted({400, 401, 403, *errors})}


def _failure() -> Schema:
    return {"description": "an error", "content": {"application/json": {"schema": _ref("Error")}}}


def _object() -> Schema:
    return {"application/json": {"schema": {"type": "object"}}}


def _stream() -> Schema:
    return {"text/event-stream": {"schema": {"type": "string"}}}


def _record(properties: Schema, *required: str) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query(name: str, schema: Schema, *, is_required: bool = False) -> Schema:
    return {"name": name, "in": "query", "required": is_required, "schema": schema}


def _header(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "header", "required": False, "schema": schema}
