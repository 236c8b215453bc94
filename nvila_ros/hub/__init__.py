"""Published checkpoints by name: where they lie on a hub, how they are fetched, and what was fetched.

`nvila fetch` alone uses the network; everything else here looks at folders. The protocol is that of the Hugging Face
hub and its mirrors, over plain HTTP; Python's own client speaks it (docs/decisions.md says why no library does).
"""
