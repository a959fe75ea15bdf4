"""``python -m prunehal``: the command line."""

from prunehal.commands.app import app

if __name__ == "__main__":
    app()
