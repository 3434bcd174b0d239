"""The command line: one file a command, options shared, heavy imports inside the command that needs them."""
