"""Conversations of a data set: from records to packed rows of token ids, built as the prompts of the node are."""
