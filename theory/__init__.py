"""Exact optima of speculative decoding on prefix trees, each with a certificate. Imports neither torch nor runtime."""
