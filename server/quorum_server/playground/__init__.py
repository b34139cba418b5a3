"""The playground at /ui: what members say of a prompt's candidates, by hand, in a browser (extra `ui`: Gradio).

    page.py  --events-->  actions.py  --the one scoring call-->  tables.py, figures.py  -->  page

Nothing else of the server knows of it.
"""

from quorum_server.playground.mount import PATH, add_playground

__all__ = ["PATH", "add_playground"]
