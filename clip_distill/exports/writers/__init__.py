"""One tower as one file: a module for each runtime, each with `write(path, graph)`."""
