"""Quantize a checkpoint layer by layer, and compute with quantized weights in torch as the reference."""
