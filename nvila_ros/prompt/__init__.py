"""Question and media to token ids: ChatML, the tokenizer of a checkpoint, placeholders."""
