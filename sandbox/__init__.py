"""A small Azure and a small GitHub on loopback, in the real services' wire formats, for the demo, `func start` and the tests."""
