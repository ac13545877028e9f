"""Reports: one self-contained HTML page, PDF figures and LaTeX tables of a folder of results."""
