"""What the workflows do in AWS and in the database; every step may be repeated at will."""
