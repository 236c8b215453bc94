"""Standing queries: questions that are asked again and again on new frames, and the events that their answers make."""
