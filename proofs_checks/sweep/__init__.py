"""Sweeps: many instances times many verifiers and optima, one row per case, on one machine or many.

`design` names the cases, `case` computes one, `workers` spreads them over processes, `store` keeps the rows so that a
killed sweep loses nothing, `results` documents the columns and summarises them.
"""
