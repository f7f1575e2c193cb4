"""The published claims, one module per chapter of the ledger; `recorded.json` holds their recorded outcomes."""
