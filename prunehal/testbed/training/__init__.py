"""Training of the embedded model: architecture, samples, stages, and the loop that resumes."""
