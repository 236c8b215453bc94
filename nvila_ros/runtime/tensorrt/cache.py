"""Keys and values on the device, in the two layouts of the decoder's graphs.

Append: token-major, (M, K, S); a step's new rows are bound right behind the past. In place: (1, K, M, S), bound as
input and output at once.

Shapes: M tokens of the cache, K kv heads, S head size.
"""

from __future__ import annotations

from nvila_ros.errors import ShapeError
from nvila_ros.models.spec import DecoderSpec
from nvila_ros.runtime.checks import check_copy, check_truncation
from nvila_ros.runtime.tensorrt.cuda import Buffer, Cuda
from nvila_ros.runtime.tensorrt.profile_context import CapturedStep

VALUE_BYTES = 2  # float16


class DeviceCache:
    """The cache of one engine, allocated once.

    Attributes:
        captured: the captured step of one token over this cache; None before.
    """

    def __init__(self, cuda: Cuda, spec: DecoderSpec, capacity: int, is_in_place: bool) -> None:
        self._cuda, self._num_blocks = cuda, spec.num_kv_heads if is_in_place else 1
        self.row_bytes = VALUE_BYTES * spec.num_kv_heads * spec.head_size  # of one token in one layer
        names = [f"{key}_{i}" for i in range(spec.num_layers) for key in "kv"]
        self.buffer_by_name = {name: Buffer(cuda, capacity * self.row_bytes) for name in names}
        # In place, attention also reads unused rows; values behind the mask must still be finite.
        for buffer in self.buffer_by_name.values():
            cuda.clear(buffer.pointer, buffer.num_bytes)
        self.capacity = capacity
        self.length = 0
        self.captured: CapturedStep | None = None

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        check_truncation(self, length)
        self.length = length

    def copy_prefix(self, source: DeviceCache, length: int) -> None:
        """Copy the first `length` tokens of another cache of the same engine, on the device.

        In place, each head's tokens are one block of a fixed size; else all heads' tokens are one block.
        """
        check_copy(self, source, length)
        if source is not self and length:
            block_bytes = length * self.row_bytes // self._num_blocks
            # For a single block the pitch has no effect, but must not be less than the copied bytes.
            pitch = self.capacity * self.row_bytes // self._num_blocks
            if self._num_blocks > 1 and source.capacity != self.capacity:
                raise ShapeError(f"caches in place must be of one size, got {source.capacity} and {self.capacity}")
            for name, buffer in self.buffer_by_name.items():
                taken = source.buffer_by_name[name].pointer
                self._cuda.copy_rows(buffer.pointer, taken, block_bytes, self._num_blocks, pitch)
        self.length = length
