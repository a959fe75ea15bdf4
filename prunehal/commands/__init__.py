"""The larger commands of ``python -m prunehal``, one file for each group."""
