"""Files: paths of the package's data, reading with bounds and clear errors, rows that resume, locks, pictures."""
