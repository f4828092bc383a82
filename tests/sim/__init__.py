"""One seeded world around the production code: time that jumps, services that misbehave, checkers that watch every step."""
