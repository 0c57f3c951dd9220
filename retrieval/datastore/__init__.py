"""Token datastore: context vectors of a model -> next tokens, each with its passage and offset."""


def main(argv=None):
    """Run `python -m retrieval.datastore` in this process."""
    from retrieval.datastore.__main__ import main as command

    return command(argv)
