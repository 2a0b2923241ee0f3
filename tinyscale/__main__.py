"""`python -m tinyscale`."""

from tinyscale.cli import main

main()
