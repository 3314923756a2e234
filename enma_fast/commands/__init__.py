"""The commands of `enma-fast`: each reads its options, calls the library, and shows what came out.

An option or the text of a table goes here, and no arithmetic; `cli` lists the commands and turns errors into one line.
"""
