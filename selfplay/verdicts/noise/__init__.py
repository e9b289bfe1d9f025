"""Noise: changes without meaning to Python source that no fixed rule can tell from the code around them.

`perturbation` chooses the files and the seed. Here are the changes.

source       a parsed file, and edits of its text
words        names, words and numbers as the repository has them
snippets     statements that do nothing, and conditions whose value only the generator knows
statements   where such statements stand: in functions, in classes, between definitions
expressions  other spellings of constants, comparisons, branches and returns
names        other names for locals, another order of definitions
layout       comments, docstrings, blank lines
passes       all of them, in order

Invariant: each change keeps what the code does, in every Python 3, or is not made. It changes what a program
can learn about its own text and bytecode; a file that reads itself is no exception, since a bug could then
ask for one.
"""
