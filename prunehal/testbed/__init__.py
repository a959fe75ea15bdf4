"""The testbed: a rendered world of COCO objects, captions with the bias of real data, and a small model trained on them."""
