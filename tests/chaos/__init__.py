"""The kill matrix: a run of an agent, with each of its processes killed at each point that it comes to."""
