"""Token datastore: context vectors of a model -> next tokens, each with its passage and offset."""
