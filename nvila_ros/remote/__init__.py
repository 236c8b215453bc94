"""Models that run elsewhere: the worker's questions, asked of a server that speaks OpenAI's API."""
