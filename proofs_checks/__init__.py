"""Where theory and runtime meet: exact laws of the runtime's own code, claims, audits."""
