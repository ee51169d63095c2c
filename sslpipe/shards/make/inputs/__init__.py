"""Kinds of inputs, each a generator of what it offers: folders, lists, tables, tars and zips."""
