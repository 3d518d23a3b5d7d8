"""Random noise within the budget: the baseline that an attack must beat to mean anything."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from temper.client.robustness.base import Attack
from temper.client.robustness.draws import image_keys
from temper.client.scores import Float32Array, Int64Array


class Noise(Attack):
    """Independent draws: even queries uniform in the L-inf ball, odd ones on its corners (+-budget everywhere)."""

    def propose(self, slots: Int64Array) -> npt.NDArray[np.int16]:
        """Return one fresh draw per slot, int16 [n, H, W, 3]; the harness cuts it at 0 and 255."""
        budget, size = self.config.budget, self.slots.original[0].size
        keys = image_keys(self.config.seed, self.slots.index[slots])
        drawn = np.empty((len(slots), *self.slots.image_shape), dtype=np.int16)
        columns = (slots, keys, self.slots.num_queries[slots])
        rows = zip(drawn, *(column.tolist() for column in columns), strict=True)
        for out, slot, key, query in rows:
            generator = np.random.Generator(np.random.Philox(key=key, counter=query << 64))
            if query % 2 == 0:
                steps = generator.integers(0, 2 * budget, size, dtype=np.uint16, endpoint=True)
            else:
                bits = np.frombuffer(generator.bytes(-(-size // 8)), dtype=np.uint8)
                steps = np.unpackbits(bits, count=size) * np.uint16(2 * budget)
            np.subtract(steps.reshape(out.shape), budget, out=out, dtype=np.int16, casting="unsafe")
            out += self.slots.original[slot]
        return drawn

    def observe(self, slots: Int64Array, scores: Float32Array) -> None:
        """Learn nothing: the draws are independent."""
