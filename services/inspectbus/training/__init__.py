"""Training: labelled images become model versions, by jobs; and the directory of those versions and their aliases."""
