"""The `cytosae` program, the demo and the simulator: the only package that may import server and client."""
