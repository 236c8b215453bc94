"""Settings of a fine-tuning run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nvila_ros.errors import ConfigError

FROZEN, LAYER_NORM, LORA, QLORA, FULL = "frozen", "layernorm", "lora", "qlora", "full"
TOWER_MODES = (FROZEN, LAYER_NORM, LORA, FULL)
LLM_MODES = (FROZEN, LORA, QLORA, FULL)
FP32, BF16, FP8 = PRECISIONS = ("fp32", "bf16", "fp8")
FREE = (
    "lr",
    "tower_lr_ratio",
    "projector_lr",
    "clip",
    "save_every",
    "num_workers",
    "is_strict",
    "is_sharded",
    "saves_memory",
)
"""Settings that may change when a run is resumed: rates, since a loss that became NaN needs lower ones, and those that
change no loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a checkpoint is tuned; the projector always learns as a whole.

    Attributes:
        tower: which weights of the vision tower learn, one of `TOWER_MODES`.
        llm: which weights of the language model learn, one of `LLM_MODES`.
        lr: peak learning rate of the language model.
        tower_lr_ratio: how many times lower the tower's is.
        projector_lr: the projector's; None is `lr`.
        weight_decay: of what is not a norm or a bias.
        warmup: share of the steps in which the rates rise.
        clip: most norm of all gradients together.
        epochs: passes over the samples.
        num_steps: instead of epochs; 0 goes by these.
        batch: samples of a step, over all ranks.
        row_tokens: read at once; a step's samples go through in as many rows as they fill.
        precision: of the work, one of `PRECISIONS`; what learns is kept in float32.
        lora_rank: rank of an adapter.
        lora_alpha: an adapter's product is scaled by it over the rank.
        lora_dropout: share of an adapter's inputs that are dropped.
        group_size: inputs that share a scale of a four-bit weight.
        saves_memory: compute a layer's activations again instead of keeping them.
        is_sharded: each rank holds its share of parameters, gradients and optimizer states.
        is_strict: a sample that cannot be read ends the run, else it is left out and counted.
        save_every: steps between saved states.
        num_workers: processes of each rank that read samples ahead; 0 reads them between the steps.
        seed: of the order of the samples and of adapters.
    """

    tower: str = LAYER_NORM
    llm: str = LORA
    lr: float = 1e-4
    tower_lr_ratio: float = 10.0
    projector_lr: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.03
    clip: float = 1.0
    epochs: int = 1
    num_steps: int = 0
    batch: int = 16
    row_tokens: int = 4096
    precision: str = BF16
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    group_size: int = 128
    saves_memory: bool = False
    is_sharded: bool = False
    is_strict: bool = True
    save_every: int = 100
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("tower", TOWER_MODES), ("llm", LLM_MODES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {list(known)}, got {getattr(self, name)!r}")
        if self.precision == FP8 and (self.llm != FULL or self.is_sharded):
            raise ConfigError(
                "fp8 is for the linear maps of a language model that learns as a whole and is not sharded, got "
                f"llm {self.llm!r}{' and sharded' if self.is_sharded else ''}; take llm 'full', or bf16"
            )
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is a share of the steps in [0, 1), got {self.warmup}")

    @property
    def has_adapters(self) -> bool:
        """Whether anything learns by LoRA."""
        return self.tower == LORA or self.llm in (LORA, QLORA)

    @property
    def lr_by_part(self) -> dict[str, float]:
        """Peak rates by the names of `optimization.PARTS`."""
        projector = self.lr if self.projector_lr is None else self.projector_lr
        return {"vision_tower": self.lr / self.tower_lr_ratio, "mm_projector": projector, "llm": self.lr}

    @property
    def rates(self) -> dict[str, float]:
        """What may change from step to step and changes what is learned."""
        return {**self.lr_by_part, "clip": self.clip}

    def identity(self) -> dict[str, Any]:
        """Return what must stay the same when a run is resumed."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}
