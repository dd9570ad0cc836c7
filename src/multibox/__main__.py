"""`python -m multibox`."""

from multibox.cli.main import main

main()
