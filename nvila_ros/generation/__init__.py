"""From a prefilled cache to an answer: decode, score choices, turn tokens into text as they come."""
