"""Other ways to spend evaluations on one network: solvers, and changes of what it predicts that cost nothing."""
