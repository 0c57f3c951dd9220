"""Readers: answers with citations, the deletion audit and a chat."""
