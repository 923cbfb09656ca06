"""What is measured, and proved at a size too great for the tests."""
