"""The report of a work directory: one section a module, one page in all."""
