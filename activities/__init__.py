"""Temporal activities: they call AWS, the database and the event sinks. Each can be repeated safely."""
