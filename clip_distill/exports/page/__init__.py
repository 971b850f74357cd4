"""The page of `export --to web`: HTML, style and script, copied as they are."""
