"""`python -m clip_distill`, the same as the command `clip-distill`."""

from clip_distill.cli.main import main

if __name__ == "__main__":
    main()
