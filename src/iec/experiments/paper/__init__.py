"""The paper's tables at the paper's scale: its models, image counts and metrics."""
