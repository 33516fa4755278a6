"""`python -m openzaya` is the command `openzaya`."""

from openzaya.cli.main import main

if __name__ == "__main__":
    main()
