"""What runs on a runner VM: the agent, its bootstrap, and the user-data that carries both there."""

AGENT_PORT = 8437
"""Where every agent listens, on its VM's private address. Plain HTTP: the subnet is the boundary, the token the key."""
