"""``python -m exporter.cli``: the ``turbotrt`` script where none is installed."""

from exporter.cli.app import main

main()
