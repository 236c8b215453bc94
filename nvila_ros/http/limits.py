"""The bounds of what comes in over HTTP and of what is kept for those who listen."""

from __future__ import annotations

MAX_BODY_BYTES = 32 << 20
"""Of a request; a video or several pictures as base64."""
MAX_MESSAGES = 64
"""Turns of a conversation that a request brings along."""
MAX_TEXT_BYTES = 256 << 10
"""Of all messages of a request together; the parameter `max_question_bytes` bounds the last one."""
MAX_JSON_DEPTH = 64
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_TOP_LOGPROBS = 20
MAX_CONNECTIONS = 128
"""Open at once; further ones are closed as they come."""
MAX_CLIENT_CONNECTIONS = 64
"""Of one address."""
MAX_CLIENT_REQUESTS = 32
"""Questions of one address that wait or run; the queue has a bound of its own."""
MAX_VIEWERS = 32
"""Who follow the events at once."""
BODY_S = 30.0
"""How long a request's body may take to arrive."""
SEND_S = 10.0
"""How long a client may leave what it is sent unread, before it is dropped."""
KEEPALIVE_S = 30.0
"""How long a connection may stay open without a request."""
DRAIN_S = 10.0
"""How long answers in progress may go on once the process was asked to end."""
FRAME_S = 0.1
"""A camera's picture is encoded for viewers at most once in this time."""
MAX_FRAME_WAIT_S = 10.0
"""How long a viewer may wait for a newer picture."""
PING_S = 15.0
"""A stream in which nothing happens shows that often that it is alive."""
STATE_S = 1.0
"""Those who follow the events get the state at most this often."""
NUM_KEPT = 512
"""Answers and events that are kept for those who come late."""
MIN_TOKEN_CHARACTERS = 16
