"""How far the copies in a grown model have diverged, and how much of the added width is in use."""
