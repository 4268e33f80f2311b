"""The command line: `cowengine NOUN VERB`. Each verb is one function over the public API, no logic of its own."""
