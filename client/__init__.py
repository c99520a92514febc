"""Hospital side: agent, session, relay, Flower ClientApp. The hospital installs and starts it."""
