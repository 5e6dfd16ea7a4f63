"""What is known about model families, as data: the named axes of every tensor, and the config fields of their sizes."""
