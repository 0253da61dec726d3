"""The script that a user would write instead of the agent, and the measurement beside it."""
