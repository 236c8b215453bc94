"""Queries to answers, over time: admission, scheduling, the worker thread and the model it runs."""
