"""The documentation as a site: `mkdocs.yml` builds docs/, and this package adds what is generated.

reference   pages made from the code: commands, settings, documents, exit codes
hooks       what mkdocs calls: adds those pages, and turns equations into MathML
blocks      the commands of a page, run in order as a reader would
"""
