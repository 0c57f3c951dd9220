"""Records of instruct data and of labelled data, read from rows."""
