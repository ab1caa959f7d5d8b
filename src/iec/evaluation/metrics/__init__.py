"""How good images are: against real ones over any feature extractor, and against the full-precision images they stand
for. Every figure comes with its number of images and a 95 % interval."""
