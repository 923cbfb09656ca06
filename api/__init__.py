"""The bridge's HTTP doors."""
