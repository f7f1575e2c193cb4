"""Exact laws of verifiers: one call, a stream of calls, races of keys; and the instances they are taken on."""
