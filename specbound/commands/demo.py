"""`specbound demo`: the main job on real input."""

from __future__ import annotations

import click


@click.command()
def demo() -> None:
    """Decode the held-out prompts and compare with theory."""
