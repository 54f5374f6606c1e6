"""Name the data: events, features, examples and artifacts."""
