"""The model families: what each one's files say, and how it maps to the operation's options.

`known` lists them. A family is a module here; docs/models.md shows them all in a table.
"""
