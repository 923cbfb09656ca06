"""The AWS emulator: moto over HTTP, corrected where it differs from AWS."""
