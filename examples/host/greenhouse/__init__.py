"""A host: its own HTTP application and Temporal worker, which carry the bridge."""
