COMPILING = False
"""Set by the process that compiles kernels, before it imports one."""
