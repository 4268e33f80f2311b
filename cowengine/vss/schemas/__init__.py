"""The JSON schemas of cowengine's documents, as files that ship with the package. No code; schema.py reads them."""
