"""`python -m gvbsm`: the command line."""

from gvbsm.cli.main import main

if __name__ == "__main__":  # worker processes import this module, too
    main(prog_name="gvbsm")
