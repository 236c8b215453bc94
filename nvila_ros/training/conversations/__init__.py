"""Conversations to learn from: records of a data set to packed rows of token ids, as the node's prompts build them."""
