"""Fused verification kernels in Triton."""
