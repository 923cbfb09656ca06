"""The sinks that events can be sent to."""
