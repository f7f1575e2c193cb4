"""The papers' experiments on any pair of models: measured by decoding, beside what theory says exactly."""
