"""The command line: commands, options, exit codes, and everything that is printed with rich."""
