"""Code that lies in an exported folder for transformers, where its own classes can't be the student."""
