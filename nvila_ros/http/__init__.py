"""The HTTP door: an OpenAI-compatible API and the page's own, over the same queue as every other endpoint."""
