"""What is drafted: paths or trees of tokens, one drafter a file; the law of each drafted token travels with it."""
