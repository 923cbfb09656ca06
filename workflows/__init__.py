"""What is decided about a device, durably; effects are the activities'."""
