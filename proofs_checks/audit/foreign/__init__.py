"""Somebody else's code, unchanged: called with our instance, its randomness intercepted, in a process of its own."""
