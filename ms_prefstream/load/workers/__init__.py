"""Worker processes that load samples ahead of the step that needs them."""
