"""`python -m rolecall.cli` is `rolecall`."""

from rolecall.cli.main import app

if __name__ == "__main__":
    app(prog_name="rolecall")
