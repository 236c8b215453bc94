"""Training in FP8 as NVILA does it: linear maps, what the backward pass keeps, and the optimizer's states.

    num_maps = convert_linears(model.llm)
    optimizer = Fp8AdamW(model.parameters(), lr=2e-5)

Source: COAT (arXiv 2410.19313), which NVILA (arXiv 2412.04468, section 2.3) trains with.
"""

from nvila_ros.training.fp8.convert import convert_linears
from nvila_ros.training.fp8.optimizer import Fp8AdamW

__all__ = ["Fp8AdamW", "convert_linears"]
