"""What is drafted: paths or trees of tokens, one drafter a file; the law of each drafted token travels with it."""

from .paths import Context, Drafts, draft_beam, draft_paths

__all__ = ["Context", "Drafts", "draft_beam", "draft_paths"]
