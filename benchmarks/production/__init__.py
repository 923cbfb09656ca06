"""The parts of the production run: its servers, its fleet of devices and its final checks."""
