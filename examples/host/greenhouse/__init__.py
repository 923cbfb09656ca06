"""A host: an HTTP application and a Temporal worker, which also run the bridge."""
