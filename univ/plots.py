"""`python -m univ.plots`, where the figures' command has always been; see `univ.show.plots`."""

from univ import cli
from univ.show.plots import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    cli.run(main)
