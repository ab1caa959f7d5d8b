"""Files that are never half-written, and fingerprints of weights."""
