"""The MindRecord file format: schema, pages, sidecar and manifest. Knows nothing of tasks."""
