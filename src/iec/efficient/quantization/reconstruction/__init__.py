"""Local reconstruction (AdaRound): each unit's rounding and grids, trained to give what the float unit gives."""
