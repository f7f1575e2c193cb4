"""Claims of this chapter."""
