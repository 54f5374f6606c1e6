"""A development server for the published SavedModels, and its page."""
