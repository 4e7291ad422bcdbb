"""One HTML page about one run or several. The command line is `__main__`."""
