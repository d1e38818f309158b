"""`python -m hisob` is `hisob`."""

from hisob.cli import main

main()
