"""One page about one run or several side by side. The command line is `__main__`."""
