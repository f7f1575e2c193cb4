"""What several verification algorithms share: walks of drafted trees, laws of selected paths, rows, roots."""
