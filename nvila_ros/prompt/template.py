"""The chat templates of the family, as data: what a prompt holds beside the user's words and media.

Special tokens stand in these texts by name. A checkpoint does not say which template it was trained on, so its tokens
decide. Source: NVLabs/VILA `conversation.py` (`qwen2`, `llama_3`, `vicuna_v1`); the template among NVILA's files.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One template.

    Attributes:
        name: upstream's.
        tokens: special tokens without which nothing can be said in it.
        before_system: before the text of the system.
        system: that text, where nobody gives another.
        opening: between it and the first message of the user.
        next_turn: before a further one, behind the end of the answer.
        reply: between the user's message and the answer.
        turn_end: the token that ends an answer in front of a further turn.
        answer_end: the token that ends the last answer of a conversation.
        stops: tokens at which an answer ends.
        has_media_tokens: media have tokens of the vocabulary, which users cannot write.
    """

    name: str
    tokens: tuple[str, ...]
    before_system: str
    system: str
    opening: str
    next_turn: str
    reply: str
    turn_end: str
    answer_end: str
    stops: tuple[str, ...]
    has_media_tokens: bool = False

    def begins_with(self, text: str) -> bool:
        """Whether every prompt begins with a text."""
        return (self.before_system or self.system).startswith(text)


def _llama_turn(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


SYSTEM = "You are a helpful assistant"  # without a final period, as in the checkpoints' chat template
_LLAMA3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)

CHATML = Template(
    name="qwen2",
    tokens=("<|im_start|>", "<|im_end|>"),
    before_system="<|im_start|>system\n",
    system=SYSTEM,
    opening="<|im_end|>\n<|im_start|>user\n",
    next_turn="\n<|im_start|>user\n",
    reply="<|im_end|>\n<|im_start|>assistant\n",
    turn_end="<|im_end|>",
    answer_end="<|im_end|>",
    stops=("<|im_end|>",),
    has_media_tokens=True,
)
LLAMA_3 = Template(
    name="llama_3",
    tokens=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    before_system=f"<|begin_of_text|>{_llama_turn('system')}",
    system=_LLAMA3_SYSTEM,
    opening=f"<|eot_id|>{_llama_turn('user')}",
    next_turn=_llama_turn("user"),
    reply=f"<|eot_id|>{_llama_turn('assistant')}",
    turn_end="<|eot_id|>",
    answer_end="<|end_of_text|>",
    stops=("<|eot_id|>", "<|end_of_text|>"),
)
VICUNA = Template(
    name="vicuna_v1",
    tokens=("<s>", "</s>"),
    before_system="",
    system=_VICUNA_SYSTEM,
    opening=" USER: ",
    next_turn="USER: ",
    reply=" ASSISTANT:",
    turn_end="</s>",
    answer_end="</s>",
    stops=("</s>",),
)
TEMPLATES = (CHATML, LLAMA_3, VICUNA)
