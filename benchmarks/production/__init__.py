"""A production of the bridge on one machine: its servers, its fleet, and what must hold of it."""
