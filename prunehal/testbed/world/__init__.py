"""The world of the testbed: what is rendered, what is said about it, and what is asked."""
