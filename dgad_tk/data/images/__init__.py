"""From a picture of any shape to one of the shape that a network takes."""
