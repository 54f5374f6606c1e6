"""What the jobs cost, measured beside their peers; see README.md."""
