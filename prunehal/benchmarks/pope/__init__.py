"""POPE: yes-or-no answers about objects, by its own rules and files."""
