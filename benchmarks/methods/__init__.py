"""The table of all methods on one set of images, built row by row."""
