"""Mutation runs: small errors put into what trust hangs on, one at a time, which some test must find (`just mutants`).

Neither mutmut 3 nor cosmic-ray does this here.  mutmut leaves decorated functions alone, and with them every validator,
property and context manager; cosmic-ray starts a process for each mutant, which imports torch for four seconds.

    operators   the errors
    reach       which tests reach which lines of a module
    swap        a mutant put into functions that are loaded
    slots       a copy of the tree, a process that has its tests collected, and one forked from it for each mutant
    targets     which tests have to find the errors in which module, and which mutants are equivalent (targets.toml)
    __main__    the run
"""
