"""`python -m iec`, as launchers of several processes start it."""

from iec.cli import main

main()
