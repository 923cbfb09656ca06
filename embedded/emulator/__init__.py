"""The AWS emulator: ministack, corrected where it differs from AWS."""
