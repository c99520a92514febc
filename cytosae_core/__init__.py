"""CytoSAE Federation core. Imports nothing on purpose: the verifier must import alone (DESIGN section 3)."""
