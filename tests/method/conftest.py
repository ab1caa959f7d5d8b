"""Hypothesis without deadlines: the machine that runs these tests may be busy."""

from hypothesis import settings

settings.register_profile("method", deadline=None, max_examples=60)
settings.load_profile("method")
