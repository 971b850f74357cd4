"""The original project's command line, mapped onto the verbs of this one; `main.py` calls it."""
