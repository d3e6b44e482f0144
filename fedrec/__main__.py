"""`python -m fedrec` is the command line."""

from fedrec.cli import main

if __name__ == "__main__":
    main()
