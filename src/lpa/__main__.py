"""`python -m lpa` is `lpa`."""

from lpa.cli import main

if __name__ == "__main__":
    main()
