"""Full screens in the terminal, made with Textual. Only commands that show one import this package.

Invariant: what a run recorded reaches the terminal as harmless text in strips or rich `Text`, never as
markup.
"""
