"""The paper's figures: what each shows as data, what is measured for it, and how it is drawn."""
