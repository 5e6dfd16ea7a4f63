"""A request and the headers of a model become a plan: pure data, without torch."""
