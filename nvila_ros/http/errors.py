"""Errors in OpenAI's form, and which status each way to end without an answer has."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from nvila_ros.types import Answer, FinishReason

RETRY_AFTER_S = 1
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that gets an error as its response.

    Args:
        status: of HTTP.
        message: the rule, the values and the fix.
        param: the field that breaks the rule, if it is one.
        code: for programs.
        should_retry: advice to clients of OpenAI, which else decide by the status.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str = "", should_retry: bool | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code, self.should_retry = code or None, should_retry

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kind = _TYPES.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> web.Response:
        """Return the error as a response."""
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status in (429, 503) else {}
        if self.should_retry is not None:
            headers["x-should-retry"] = str(self.should_retry).lower()
        return web.json_response(self.body, status=self.status, headers=headers)


def unanswered(answer: Answer) -> ApiError | None:
    """Return the error of an answer that says nothing; None where it says something, if only its beginning."""
    reason, code = answer.finish_reason, answer.finish_reason.name.lower()
    if reason.is_answered or (answer.text and reason in (FinishReason.DEADLINE, FinishReason.CANCELED)):
        return None
    message = answer.error or f"there is no answer: {code}"
    if reason is FinishReason.INVALID:
        return ApiError(400, message, code=code)
    if reason is FinishReason.NO_FRAMES:
        is_past = answer.query.start_ns is not None or answer.query.ago_start_s > 0
        return ApiError(404 if is_past else 503, message, code=code)
    if reason is FinishReason.REJECTED:
        return ApiError(429, message, code=code)
    if reason is FinishReason.FAILED:
        return ApiError(500, message, code=code, should_retry=False)
    return ApiError(503, message, code=code, should_retry=False if reason is FinishReason.DEADLINE else None)
