"""Programs that a student drops into: a record each, and what else the program reads."""
