"""The workflows: they decide what happens and in which order, and every effect is an activity."""
