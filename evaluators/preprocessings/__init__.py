"""Which preprocessing a file from elsewhere wants: those of the field, tried on labelled images."""
