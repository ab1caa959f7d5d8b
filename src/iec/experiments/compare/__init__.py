"""Correction against everything else that the same evaluations could buy on the same network."""
