"""Makes this folder importable, so that every test package finds `tiny_models`."""
