"""The operating system: command lines, signals, files, and how a process starts."""
