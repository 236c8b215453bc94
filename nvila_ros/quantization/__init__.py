"""From a checkpoint to its quantized weights, layer by layer, and the reference of what they compute."""
