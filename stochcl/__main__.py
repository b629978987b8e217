"""``python -m stochcl`` is ``stochcl``."""

from stochcl.cli.main import main

if __name__ == "__main__":
    main(prog_name="stochcl")
