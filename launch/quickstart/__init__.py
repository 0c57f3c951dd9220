"""The stages of the first study that are its own: passages and questions from GeoNames, the edits, the report."""
