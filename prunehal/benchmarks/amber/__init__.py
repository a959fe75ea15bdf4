"""AMBER: captions and yes-or-no answers, by its own rules and files."""
